//! What the server says that this user may not do.
//!
//! NATS leaves unanswered what may not be sent, and says so in a line of its own: who asked would wait until its time is over, and
//! never learn why. `Refusals` owns what was said of one connection, and ends the waiting of those whom it concerns.

use std::{
    error::Error,
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use async_nats::{Event, ServerError};
use tokio::sync::broadcast::{self, error::RecvError};

/// Refusals that one who asks may be behind with: as many devices can be refused something at a time. One that is further behind
/// waits until its time is over.
const BEHIND: usize = 1024;

/// The server lets this user not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "permission denied: the server does not let this user {to} {subject}; for users with all that is needed see Secret in \
     docs/fleet.md"
)]
pub struct Refused {
    to: To,
    subject: String,
}

/// What it does not let it do with a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Publish,
    Subscribe,
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Publish => "publish to",
            Self::Subscribe => "subscribe to",
        })
    }
}

impl Refused {
    /// What a server's error says, if it is that.
    /// Source: nats-server 2.9, server/client.go, `pubPermissionViolation` and `subPermissionViolation`.
    fn read(error: &str) -> Option<Self> {
        let (_, what) = error.split_once("Permissions Violation for ")?;
        let publish = what.strip_prefix("Publish to \"").map(|rest| (To::Publish, rest));
        let subscribe = || what.strip_prefix("Subscription to \"").map(|rest| (To::Subscribe, rest));
        let (to, rest) = publish.or_else(subscribe)?;
        let (subject, _) = rest.split_once('"')?;
        Some(Self { to, subject: subject.to_owned() })
    }
}

/// Why something that was asked has failed.
#[derive(Debug, thiserror::Error)]
pub enum Failed<E: Error + 'static> {
    /// This user may not ask it.
    #[error(transparent)]
    Refused(Refused),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] E),
}

/// All that a server refuses to one connection.
#[derive(Clone)]
pub struct Refusals {
    news: broadcast::Sender<Refused>,
    /// The subscription that answers come by. It is asked for once, with the first request.
    inbox: Arc<Mutex<Option<Refused>>>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { news: broadcast::Sender::new(BEHIND), inbox: Arc::default() }
    }
}

impl Refusals {
    /// Whether what happened to the connection is a refusal; who asked tells of it then.
    pub fn hear(&self, event: &Event) -> bool {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            // It is asked for anew.
            Event::Connected => *inbox = None,
            Event::ServerError(ServerError::Other(error)) => {
                if let Some(refused) = Refused::read(error) {
                    // This crate subscribes to nothing but answers.
                    if refused.to == To::Subscribe {
                        *inbox = Some(refused.clone());
                    }
                    // Perhaps nobody waits.
                    let _ = self.news.send(refused);
                    return true;
                }
            }
            _ => {}
        }
        false
    }

    /// Waits for the answer to a `request`, unless a subject that `is_its` is refused, or all answers are.
    pub async fn or<T, E: Error + 'static>(
        &self,
        is_its: impl Fn(&str) -> bool,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failed<E>> {
        let refused = self.refusal(is_its);
        tokio::select! {
            biased;
            answer = request => Ok(answer?),
            refused = refused => Err(Failed::Refused(refused)),
        }
    }

    /// The next refusal, from this call on, of a subject that `is_its`, or of all answers.
    pub fn refusal<F: Fn(&str) -> bool>(&self, is_its: F) -> impl Future<Output = Refused> + use<F> {
        let mut news = self.news.subscribe();
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).clone();
        async move {
            if let Some(refused) = inbox {
                return refused;
            }
            loop {
                match news.recv().await {
                    Ok(refused) if refused.to == To::Subscribe || is_its(&refused.subject) => return refused,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return std::future::pending().await,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future, io};

    use super::*;

    fn says(text: &str) -> Event {
        Event::ServerError(ServerError::Other(text.to_owned()))
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    /// What nobody answers.
    fn unanswered() -> impl Future<Output = Result<(), io::Error>> {
        future::pending()
    }

    #[test]
    fn only_what_is_not_permitted_is_a_refusal() {
        let refusals = Refusals::default();
        for (text, is) in [
            ("Permissions Violation for Publish to \"plaintap.a.log\"", true),
            ("Permissions Violation for Subscription to \"_INBOX.x.*\" using queue \"q\"", true),
            ("Permissions Violation for Publish", false),
            ("Maximum Payload Violation", false),
        ] {
            assert_eq!(refusals.hear(&says(text)), is, "{text}");
        }
        assert!(!refusals.hear(&Event::Connected));
    }

    #[test]
    fn who_asks_what_is_not_permitted_is_told_at_once_and_nobody_else() {
        run(async {
            let refusals = Refusals::default();
            let its = refusals.or(|subject| subject == "a.b", async {
                refusals.hear(&says("Permissions Violation for Publish to \"a.c\""));
                refusals.hear(&says("Permissions Violation for Publish to \"a.b\""));
                unanswered().await
            });
            let error = its.await.unwrap_err().to_string();
            assert!(error.contains("not let this user publish to a.b;"), "{error}");
            assert!(error.contains("docs/fleet.md"), "{error}");
            // What was refused before may be permitted by now.
            let answered = async {
                tokio::task::yield_now().await;
                Ok::<_, io::Error>(())
            };
            refusals.or(|subject| subject == "a.b", answered).await.unwrap();
        });
    }

    #[test]
    fn without_leave_to_hear_answers_nothing_is_waited_for_until_there_is_another_connection() {
        run(async {
            let refusals = Refusals::default();
            refusals.hear(&says("Permissions Violation for Subscription to \"_INBOX.x.*\""));
            let error = refusals.or(|_| false, unanswered()).await.unwrap_err().to_string();
            assert!(error.contains("subscribe to _INBOX.x.*;"), "{error}");
            refusals.hear(&Event::Connected);
            let answered = async {
                tokio::task::yield_now().await;
                Ok::<_, io::Error>(())
            };
            refusals.or(|_| false, answered).await.unwrap();
        });
    }
}
