//! How messages travel: ttrpc's, of two services, over one socket.
//!
//! The runtime puts each part of a channel into a frame with the channel's number and the part's length
//! (containerd/nri, `pkg/net/multiplex`, as of v0.12.2). The parts of a channel, one behind the other, are
//! messages of ttrpc (containerd/ttrpc, `PROTOCOL.md`, as of v1.2.9). The crate `ttrpc` speaks to sockets
//! of its own kinds, brings a second implementation of Protocol Buffers, and keeps no bounds on what waits;
//! of its protocol one request and one answer are needed here, which have a header of ten bytes.

/// The longest data of a message, in bytes, that ttrpc allows.
pub const MOST: usize = 4 << 20;
/// The header of a frame: the channel, and the length of the part behind it.
pub const FRAME_HEADER: usize = 8;
/// The header of a message: the length of its data, the stream, the kind and flags.
const MESSAGE_HEADER: usize = 10;
/// The longest part that is sent. The runtime reads parts into a buffer of this size.
const PART: usize = 4096;

/// Which service a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// The plugin's, which the runtime calls.
    Plugin,
    /// The runtime's, which the plugin calls.
    Runtime,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It asks for something.
    Request,
    /// It answers a request of the same stream.
    Response,
}

/// A message that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The number that a request and its answer have in common.
    pub stream: u32,
    /// What it is.
    pub kind: Kind,
    /// A `Request` or a `Response` of ttrpc, not read yet.
    pub data: Vec<u8>,
}

/// What no runtime sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// A channel that is none of the two.
    #[error("a frame is for channel {0}, and there are 1 and 2")]
    Channel(u32),
    /// A length above [`MOST`].
    #[error("a frame or message has {0} bytes, and {MOST} are the most")]
    Length(u32),
    /// Another kind of message.
    #[error("a message has kind {0} and flags {1}: streams of data are not spoken here")]
    Kind(u8, u8),
}

impl Channel {
    const fn number(self) -> u32 {
        match self {
            Self::Plugin => 1,
            Self::Runtime => 2,
        }
    }
}

/// Read the header of a frame: for which channel it is, and how many bytes of that follow.
///
/// # Errors
/// When there is no such channel, or it is longer than any message.
pub fn frame(header: [u8; FRAME_HEADER]) -> Result<(Channel, usize), BadFrame> {
    let [n0, n1, n2, n3, l0, l1, l2, l3] = header;
    let number = u32::from_be_bytes([n0, n1, n2, n3]);
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    let channel = match number {
        1 => Channel::Plugin,
        2 => Channel::Runtime,
        other => return Err(BadFrame::Channel(other)),
    };
    let most = MOST + MESSAGE_HEADER;
    match usize::try_from(length) {
        Ok(count) if count <= most => Ok((channel, count)),
        _ => Err(BadFrame::Length(length)),
    }
}

/// The bytes of a channel, until they are a message. It never holds more than one message and the part
/// that ended it.
#[derive(Debug, Default)]
pub struct Assembly {
    bytes: Vec<u8>,
}

impl Assembly {
    /// Take a part, and give the messages that it made whole.
    ///
    /// # Errors
    /// When a message is longer than allowed, or of a kind that is not spoken here.
    pub fn take(&mut self, part: &[u8]) -> Result<Vec<Message>, BadFrame> {
        self.bytes.extend_from_slice(part);
        let (mut whole, mut at) = (Vec::new(), 0);
        while let Some((stream, kind, length)) = header(&self.bytes[at..])? {
            let begin = at + MESSAGE_HEADER;
            let Some(data) = self.bytes.get(begin..begin + length) else { break };
            whole.push(Message { stream, kind, data: data.to_vec() });
            at = begin + length;
        }
        if at == self.bytes.len() {
            // One long message is no reason to keep its memory.
            self.bytes = Vec::new();
        } else {
            drop(self.bytes.drain(..at));
        }
        Ok(whole)
    }
}

/// The header of the message that begins here: its stream and kind, and the length of its data. None where not
/// all of it is there.
fn header(bytes: &[u8]) -> Result<Option<(u32, Kind, usize)>, BadFrame> {
    let Some(header) = bytes.first_chunk::<MESSAGE_HEADER>() else { return Ok(None) };
    let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *header;
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    let count = usize::try_from(length).ok().filter(|count| *count <= MOST);
    let kind = match (kind, flags) {
        (1, 0) => Kind::Request,
        (2, _) => Kind::Response,
        (kind, flags) => return Err(BadFrame::Kind(kind, flags)),
    };
    let count = count.ok_or(BadFrame::Length(length))?;
    Ok(Some((u32::from_be_bytes([s0, s1, s2, s3]), kind, count)))
}

/// A message as it is sent: one frame, or several where it is long.
///
/// # Errors
/// When it is longer than allowed.
pub fn encode(channel: Channel, message: &Message) -> Result<Vec<u8>, BadFrame> {
    let too_long = || BadFrame::Length(u32::try_from(message.data.len()).unwrap_or(u32::MAX));
    let length = u32::try_from(message.data.len()).map_err(|_long| too_long())?;
    if message.data.len() > MOST {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(MESSAGE_HEADER + message.data.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(message.stream.to_be_bytes());
    bytes.push(match message.kind {
        Kind::Request => 1,
        Kind::Response => 2,
    });
    bytes.push(0);
    bytes.extend(&message.data);
    let mut frames = Vec::new();
    for part in bytes.chunks(PART) {
        frames.extend(channel.number().to_be_bytes());
        frames.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        frames.extend(part);
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(number: u32, length: u32) -> [u8; FRAME_HEADER] {
        let mut header = [0; FRAME_HEADER];
        header[..4].copy_from_slice(&number.to_be_bytes());
        header[4..].copy_from_slice(&length.to_be_bytes());
        header
    }

    /// What a peer reads from frames.
    fn read(mut bytes: &[u8], step: usize) -> Vec<Message> {
        let (mut assembly, mut messages) = (Assembly::default(), Vec::new());
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(FRAME_HEADER);
            let (channel, count) = frame(head.try_into().unwrap()).unwrap();
            assert_eq!(channel, Channel::Plugin);
            assert!(count <= PART);
            let (payload, rest) = rest.split_at(count);
            for part in payload.chunks(step) {
                messages.extend(assembly.take(part).unwrap());
            }
            bytes = rest;
        }
        assert!(assembly.bytes.is_empty());
        messages
    }

    #[test]
    fn bytes_are_those_of_the_protocol() {
        let message = Message { stream: 3, kind: Kind::Response, data: vec![7, 8] };
        let bytes = encode(Channel::Runtime, &message).unwrap();
        let expected = [0, 0, 0, 2, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 3, 2, 0, 7, 8];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_no_runtime_sends_is_refused() {
        for number in [0, 3, u32::MAX] {
            assert_eq!(frame(header(number, 1)), Err(BadFrame::Channel(number)));
        }
        let most = u32::try_from(MOST).unwrap();
        assert!(frame(header(1, most + 10)).is_ok());
        assert_eq!(frame(header(1, most + 11)), Err(BadFrame::Length(most + 11)));
        let mut head = [0; MESSAGE_HEADER];
        head[8] = 1;
        head[..4].copy_from_slice(&(most + 1).to_be_bytes());
        // Before a byte of it is there.
        assert_eq!(Assembly::default().take(&head), Err(BadFrame::Length(most + 1)));
        for (kind, flags) in [(0, 0), (3, 0), (1, 1), (1, 2), (9, 9)] {
            let mut head = [0; MESSAGE_HEADER];
            (head[8], head[9]) = (kind, flags);
            assert_eq!(Assembly::default().take(&head), Err(BadFrame::Kind(kind, flags)));
        }
        let long = Message { stream: 1, kind: Kind::Request, data: vec![0; MOST + 1] };
        assert!(encode(Channel::Plugin, &long).is_err());
    }

    proptest! {
        #[test]
        fn messages_arrive_however_they_are_cut(
            sizes in proptest::collection::vec(0_usize..10_000, 1..5),
            step in 1_usize..5_000,
        ) {
            let messages: Vec<Message> = (1..).zip(sizes).map(|(stream, size)| {
                let kind = if stream % 2 == 0 { Kind::Response } else { Kind::Request };
                Message { stream, kind, data: vec![u8::try_from(stream).unwrap(); size] }
            }).collect();
            let mut bytes = Vec::new();
            for message in &messages {
                bytes.extend(encode(Channel::Plugin, message).unwrap());
            }
            prop_assert_eq!(read(&bytes, step), messages);
        }
    }
}
