//! Places for those who have not come in yet: so many at a time, and only half of them for one user.
//!
//! Nobody from this device can keep them from another of its users. Other devices have no user id, and count as one.

use std::cell::RefCell;

use super::peer::Peer;

/// In all, and for one user.
const ALL: usize = 32;
const EACH: usize = ALL / 2;

/// Who holds a place.
#[derive(Debug, Default)]
pub struct Places(RefCell<Vec<Option<u32>>>);

/// A place, for as long as it lives.
#[derive(Debug)]
pub struct Place<'a> {
    places: &'a Places,
    user: Option<u32>,
}

impl Places {
    /// A place for `peer`, if there is one left.
    pub fn take(&self, peer: &Peer) -> Option<Place<'_>> {
        let (user, mut holders) = (peer.uid, self.0.borrow_mut());
        let same = holders.iter().filter(|holder| **holder == user).count();
        (holders.len() < ALL && same < EACH).then(|| {
            holders.push(user);
            Place { places: self, user }
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut holders = self.places.0.borrow_mut();
        if let Some(place) = holders.iter().position(|holder| *holder == self.user) {
            holders.swap_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_user_leaves_half_of_them_to_others() {
        let peer = |uid| Peer { address: None, local: Ipv4Addr::LOCALHOST.into(), is_local: true, uid };
        let places = Places::default();
        let take = |uid| std::iter::from_fn(|| places.take(&peer(uid))).collect::<Vec<_>>();
        let (mut one, elsewhere) = (take(Some(1)), take(None));
        assert_eq!((one.len(), elsewhere.len()), (EACH, ALL - EACH));
        assert!(places.take(&peer(Some(0))).is_none());
        one.pop();
        assert!(places.take(&peer(None)).is_none());
        assert!(places.take(&peer(Some(0))).is_some());
        drop((one, elsewhere));
        assert_eq!(take(Some(0)).len(), EACH);
    }
}
