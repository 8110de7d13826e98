//! Whether a namespace has policies of `IPsec`, which decide about packets beside all rules and routes
//! (`linux/xfrm.h`, `net/xfrm/xfrm_user.c`).

use std::io;

use netlink_sys::protocols::NETLINK_XFRM;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `XFRM_MSG_NEWSPDINFO`, `XFRM_MSG_GETSPDINFO`, `XFRM_MSG_GETDEFAULT`
const COUNTS: u16 = 0x24;
const GET_COUNTS: u16 = 0x25;
const GET_DEFAULT: u16 = 0x28;
/// `XFRMA_SPD_INFO`: six numbers, of policies for each way, and of those of sockets.
const COUNT: u16 = 1;
/// `XFRM_USERPOLICY_BLOCK`
const BLOCK: u8 = 1;
/// Of a message and of an attribute (`NLMSG_HDRLEN`, `NLA_HDRLEN`).
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// In seconds: the kernel answers at once.
const PATIENCE: i64 = 5;

/// Whether the calling thread's namespace has policies, or blocks what no policy is for. A kernel without
/// `IPsec` has none.
pub(crate) fn has_policies() -> bool {
    let counts = ask(GET_COUNTS, COUNTS).ok().flatten();
    let counted = counts.is_some_and(|body| {
        // Flags come first.
        let mut rest = body.get(4..).unwrap_or_default();
        let mut any = false;
        while let Some((length, kind)) = half(rest, 0).zip(half(rest, 2)) {
            let length = usize::from(length);
            let value = rest.get(ATTRIBUTE..length).unwrap_or_default();
            any |= kind == COUNT && value.iter().any(|byte| *byte != 0);
            rest = rest.get(length.max(ATTRIBUTE).next_multiple_of(4)..).unwrap_or_default();
        }
        any
    });
    let default = ask(GET_DEFAULT, GET_DEFAULT).ok().flatten();
    counted || default.is_some_and(|body| body.iter().take(3).any(|one| *one == BLOCK))
}

/// What a question is answered with, behind the message's header; none where the kernel refuses it.
fn ask(question: u16, answer: u16) -> io::Result<Option<Vec<u8>>> {
    let mut socket = Socket::new(NETLINK_XFRM)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = Vec::from(20_u32.to_ne_bytes());
    message.extend(question.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Number, port, and flags, which mean nothing.
    message.extend([0; 12]);
    socket.send(&message, 0)?;
    let (bytes, _) = socket.recv_from_full()?;
    Ok((half(&bytes, 4) == Some(answer)).then(|| bytes.get(HEADER..).unwrap_or_default().to_vec()))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}
