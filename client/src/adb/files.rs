//! A file on its way to the device, by the sync protocol. Source: AOSP, packages/modules/adb, SYNC.TXT.

use std::time::Duration;

use super::{Error, said, stream::Stream};

/// The largest piece that the protocol allows.
const PIECE: usize = 64 << 10;
/// A device's refusal is read up to here.
const MOST: usize = 4 << 10;
/// For the device to have written all of it to its storage.
const PATIENCE: u64 = 60;

/// Writes `bytes` to `path` on the device, on a connection to its sync service. The mode is 0755.
pub fn push(mut stream: Stream, path: &str, bytes: &[u8]) -> Result<(), Error> {
    let target = format!("{path},{}", 0o100_755);
    send(&mut stream, b"SEND", target.as_bytes())?;
    for piece in bytes.chunks(PIECE) {
        send(&mut stream, b"DATA", piece)?;
    }
    // In place of a length: when the file was changed last, in seconds. 1970 is as good as another.
    stream.send(b"DONE\0\0\0\0")?;
    let mut head = [0; 8];
    if !stream.wait(Duration::from_secs(PATIENCE))? {
        return Err(Error::Late(format!("writing {path}"), PATIENCE));
    }
    stream.fill(&mut head)?;
    let [word @ .., a, b, c, d] = head;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX).min(MOST);
    match &word {
        b"OKAY" => Ok(()),
        b"FAIL" => {
            let mut words = vec![0; length];
            stream.fill(&mut words)?;
            let said = said(String::from_utf8_lossy(&words).trim_end_matches('\0'));
            Err(Error::Failed { what: "can't write plaintapd", said })
        }
        other => Err(Error::Wrong(format!("it says {:?} to a file", String::from_utf8_lossy(other)))),
    }
}

fn send(stream: &mut Stream, word: &[u8; 4], data: &[u8]) -> Result<(), Error> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    stream.send(&[&word[..], &length.to_le_bytes(), data].concat())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

    use super::*;

    /// What a device was sent, and what came of it when it gave this answer.
    fn pushed(bytes: &[u8], answer: &'static [u8]) -> (Vec<u8>, Result<(), Error>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        let device = thread::spawn(move || {
            let mut got = vec![];
            let mut piece = [0; 4096];
            while !got.ends_with(b"DONE\0\0\0\0") {
                let length = theirs.read(&mut piece).unwrap();
                assert!(length > 0);
                got.extend(&piece[..length]);
            }
            theirs.write_all(answer).unwrap();
            got
        });
        let result = push(Stream::new(ours).unwrap(), "/x", bytes);
        (device.join().unwrap(), result)
    }

    #[test]
    fn a_file_goes_in_pieces_that_the_protocol_allows() {
        let (got, result) = pushed(&vec![7; PIECE + 1], b"OKAY\0\0\0\0");
        result.unwrap();
        assert!(got.starts_with(b"SEND\x08\0\0\0/x,33261DATA\0\0\x01\0\x07"));
        assert!(got.ends_with(b"\x07DATA\x01\0\0\0\x07DONE\0\0\0\0"));
    }

    #[test]
    fn a_device_without_room_says_so() {
        let error = pushed(b"a", b"FAIL\x07\0\0\0no room").1.unwrap_err();
        assert!(error.to_string().ends_with("no room"), "{error}");
        assert!(matches!(pushed(b"a", b"what?!??").1, Err(Error::Wrong(_))));
    }
}
