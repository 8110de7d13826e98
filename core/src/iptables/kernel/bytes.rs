//! Numbers and addresses out of the kernel's structs, none of which is trusted to be long enough.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Extension, Unknown};
use crate::value::Family;

/// A struct of the kernel: fields by their offset, in the machine's byte order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'b>(pub(super) &'b [u8]);

impl<'b> Bytes<'b> {
    fn array<const N: usize>(self, at: usize) -> Result<[u8; N], Unknown> {
        let bytes = at.checked_add(N).and_then(|end| self.0.get(at..end));
        bytes.and_then(|b| b.try_into().ok()).ok_or(Unknown::TooShort)
    }

    pub(super) fn u8(self, at: usize) -> Result<u8, Unknown> {
        self.array::<1>(at).map(|[byte]| byte)
    }

    pub(super) fn u16(self, at: usize) -> Result<u16, Unknown> {
        self.array(at).map(u16::from_ne_bytes)
    }

    pub(super) fn u32(self, at: usize) -> Result<u32, Unknown> {
        self.array(at).map(u32::from_ne_bytes)
    }

    pub(super) fn u64(self, at: usize) -> Result<u64, Unknown> {
        self.array(at).map(u64::from_ne_bytes)
    }

    /// In network byte order.
    pub(super) fn be16(self, at: usize) -> Result<u16, Unknown> {
        self.array(at).map(u16::from_be_bytes)
    }

    pub(super) fn address(self, family: Family, at: usize) -> Result<IpAddr, Unknown> {
        Ok(match family {
            Family::V4 => Ipv4Addr::from(self.array::<4>(at)?).into(),
            Family::V6 => Ipv6Addr::from(self.array::<16>(at)?).into(),
        })
    }

    /// Text that ends at the first zero, in a field of `length` bytes.
    pub(super) fn text(self, at: usize, length: usize) -> Result<&'b str, Unknown> {
        let field = self.slice(at, length)?;
        let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).map_err(|_e| Unknown::Text)
    }

    pub(super) fn slice(self, at: usize, length: usize) -> Result<&'b [u8], Unknown> {
        let end = at.checked_add(length).ok_or(Unknown::TooShort)?;
        self.0.get(at..end).ok_or(Unknown::TooShort)
    }

    /// Everything from an offset on.
    pub(super) fn from(self, at: usize) -> Result<Self, Unknown> {
        self.0.get(at..).map(Bytes).ok_or(Unknown::TooShort)
    }

    pub(super) fn is_zero(self, at: usize, length: usize) -> Result<bool, Unknown> {
        Ok(self.slice(at, length)?.iter().all(|byte| *byte == 0))
    }
}

/// A struct of the kernel being filled: zeros where nothing is put.
#[derive(Clone, Debug)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// A struct of this many bytes, and the zeros behind it that `XT_ALIGN` asks for.
    pub(super) fn new(size: usize) -> Self {
        Self(vec![0; size.next_multiple_of(8)])
    }

    /// Put bytes at an offset within the struct.
    pub(super) fn put<const N: usize>(mut self, at: usize, bytes: [u8; N]) -> Self {
        if let Some(field) = self.0.get_mut(at..at + N) {
            field.copy_from_slice(&bytes);
        }
        self
    }

    pub(super) fn u8(self, at: usize, value: u8) -> Self {
        self.put(at, [value])
    }

    pub(super) fn u16(self, at: usize, value: u16) -> Self {
        self.put(at, value.to_ne_bytes())
    }

    pub(super) fn u32(self, at: usize, value: u32) -> Self {
        self.put(at, value.to_ne_bytes())
    }

    pub(super) fn called(self, name: &str, revision: u8) -> Extension {
        Extension { name: name.to_owned(), revision, data: self.0 }
    }
}
