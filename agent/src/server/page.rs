//! The page that a browser gets from a plain GET of `/`: one file, made of agent/web/ by its build.mjs.

use std::{io, net::TcpStream};

use smol::{Async, io::AsyncWriteExt};

const PAGE: &[u8] = include_bytes!("../../web/page.html.gz");
/// Its Content-Security-Policy. The page has it too, but for who may frame it, which only a header can say.
const POLICY: &str = include_str!("../../web/policy.txt");

/// Whether a request for `target`, which passed all of the handshake's looks but is no WebSocket's, is for the page.
pub fn is_asked(head: &[u8], target: &str) -> bool {
    let upgrades = head
        .split(|byte| *byte == b'\n')
        .any(|line| line.get(..8).is_some_and(|name| name.eq_ignore_ascii_case(b"upgrade:")));
    !upgrades && target.split('?').next() == Some("/")
}

/// Sends the page. All browsers take gzip; what else asks here is told by the header.
pub async fn send(socket: &mut Async<TcpStream>) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\
         Content-Security-Policy: {POLICY}; frame-ancestors 'none'\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n\
         Referrer-Policy: no-referrer\r\nCross-Origin-Opener-Policy: same-origin\r\n\
         Cross-Origin-Resource-Policy: same-origin\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n",
        PAGE.len()
    );
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(PAGE).await?;
    socket.get_ref().shutdown(std::net::Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_given_at_the_root_to_those_who_want_no_websocket() {
        assert!(is_asked(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "/"));
        assert!(is_asked(b"GET /?token=x HTTP/1.1\r\nHost: localhost\r\n\r\n", "/?token=x"));
        assert!(!is_asked(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n", "/x"));
        assert!(!is_asked(b"GET / HTTP/1.1\r\nHost: localhost\r\nUPGRADE: websocket\r\n\r\n", "/"));
    }

    #[test]
    fn the_policy_is_a_line_of_a_head() {
        assert!(POLICY.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }

    #[test]
    fn the_page_is_smaller_than_40_kib() {
        assert!(PAGE.len() < 40 << 10);
    }
}
