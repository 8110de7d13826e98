//! What the kernel answers, as it is. The message library reads it too, but writes a text about
//! each attribute for an error that hardly ever happens: four fifths of the time that a run takes
//! when nothing has to be changed.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable as _, NLA_HEADER_SIZE, NetlinkDeserializable, NetlinkHeader,
    NlaBuffer, NlasIterator,
};

/// `NFTA_LIST_ELEM`
const ELEMENT: u16 = 1;
/// Bytes of `struct nfgenmsg` (`linux/netfilter/nfnetlink.h`).
const HEADER: usize = 4;

/// What a message is about: the number of its kind in `nf_tables` (`enum nf_tables_msg_types`).
pub(super) mod kind {
    pub(in super::super) const TABLE: u16 = 0;
    pub(in super::super) const CHAIN: u16 = 3;
    pub(in super::super) const RULE: u16 = 6;
    pub(in super::super) const SET: u16 = 9;
    pub(in super::super) const ELEMENTS: u16 = 12;
    pub(in super::super) const GENERATION: u16 = 15;
    pub(in super::super) const TRACE: u16 = 17;
}

/// One message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// One of [`kind`], if it is a message of `nf_tables`.
    pub(super) kind: u16,
    /// `NFPROTO_*`
    pub(crate) family: u8,
    bytes: Vec<u8>,
}

impl Answer {
    pub(crate) fn attributes(&self) -> Attributes<'_> {
        Attributes(&self.bytes)
    }
}

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        let (Some(family), Some(bytes)) = (payload.first(), payload.get(HEADER..)) else {
            return Err(DecodeError::buffer_too_small(payload.len(), HEADER));
        };
        // The upper byte is the subsystem, and nf_tables alone was asked.
        Ok(Self { kind: header.message_type & 0xff, family: *family, bytes: bytes.to_vec() })
    }
}

/// Attributes, one behind the other (`netlink(7)`). What makes no sense is not there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'b>(pub(super) &'b [u8]);

impl<'b> Attributes<'b> {
    pub(super) fn iter(self) -> impl Iterator<Item = (u16, &'b [u8])> {
        let attributes = NlasIterator::new(self.0).map_while(Result::ok);
        attributes.map(|nla: NlaBuffer<&'b [u8]>| {
            let (kind, end) = (nla.kind(), usize::from(nla.length()));
            (kind, nla.into_inner().get(NLA_HEADER_SIZE..end).unwrap_or_default())
        })
    }

    pub(crate) fn get(self, kind: u16) -> Option<&'b [u8]> {
        self.iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// A number in network byte order.
    pub(crate) fn number(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A number of eight bytes in network byte order.
    pub(super) fn long(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A text that ends with a zero.
    pub(crate) fn text(self, kind: u16) -> Option<&'b str> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(bytes.get(..end)?).ok()
    }

    pub(super) fn nested(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Attributes)
    }

    /// The elements of a list.
    pub(super) fn list(self, kind: u16) -> impl Iterator<Item = Self> {
        let list = self.nested(kind).unwrap_or(Attributes(&[]));
        list.iter().filter(|(k, _)| *k == ELEMENT).map(|(_, value)| Attributes(value))
    }

    /// Those of these kinds alone, as bytes.
    pub(super) fn some(self, kinds: &[u16]) -> Vec<u8> {
        let wanted = self.iter().filter(|(kind, _)| kinds.contains(kind));
        let wanted: Vec<_> =
            wanted.map(|(kind, value)| DefaultNla::new(kind, value.to_vec())).collect();
        let mut bytes = vec![0; wanted.as_slice().buffer_len()];
        wanted.as_slice().emit(&mut bytes);
        bytes
    }
}
