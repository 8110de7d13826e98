//! Addresses as the kernel hands them to eBPF programs.

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form (RFC 4291, 2.5.5.2), as four words
/// that hold the bytes in network order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address(pub [u32; 4]);

/// The third word of an IPv4-mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// 127.0.0.1, in its IPv4-mapped form.
    pub const LOCALHOST4: Self = Self::v4(0x7f00_0001_u32.to_be());
    /// `::1` (RFC 4291, 2.5.3).
    pub const LOCALHOST6: Self = Self([0, 0, 0, 1_u32.to_be()]);
    /// Where a proxy speaks to the application from: 127.0.0.6.
    pub const PASSTHROUGH4: Self = Self::v4(0x7f00_0006_u32.to_be());
    /// The same in IPv6: `::6`.
    pub const PASSTHROUGH6: Self = Self([0, 0, 0, 6_u32.to_be()]);
    /// An IPv4 address that nobody has: the dummy address (RFC 7600).
    pub const NOBODY4: Self = Self::v4(0xc000_0008_u32.to_be());
    /// The same in IPv6: one of the dummy prefix (RFC 9780).
    pub const NOBODY6: Self = Self([0x0100_0000_u32.to_be(), 1_u32.to_be(), 0, 1_u32.to_be()]);

    /// An IPv4 address, whose bytes in memory are in network order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// From the 16 bytes of an IPv6 or IPv4-mapped address.
    #[must_use]
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// The 16 bytes of the IPv6 or IPv4-mapped address.
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_ne_bytes(), b.to_ne_bytes());
        let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (c.to_ne_bytes(), d.to_ne_bytes());
        [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3]
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.0;
        a | b | (c ^ MAPPED) == 0
    }

    /// The word of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn word4(&self) -> u32 {
        let [_, _, _, d] = self.0;
        d
    }

    /// Whether it is 127.0.0.0/8 or `::1`.
    #[inline(always)]
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.word4()) >> 24 == 127
        } else {
            self.equals(&Self::LOCALHOST6)
        }
    }

    /// Whether it is in `fe80::/10`, and means something only behind one device.
    #[inline(always)]
    #[must_use]
    pub const fn is_link_local(&self) -> bool {
        let [a, ..] = self.0;
        u32::from_be(a) >> 22 == 0xfe80 >> 6
    }

    /// Whether it is where a proxy speaks to the application from.
    #[inline(always)]
    #[must_use]
    pub const fn is_passthrough(&self) -> bool {
        self.equals(&Self::PASSTHROUGH4) || self.equals(&Self::PASSTHROUGH6)
    }

    /// Whether it is 0.0.0.0 or `::`.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.0;
        a | b | d == 0 && (c == 0 || c == MAPPED)
    }

    /// What a connection to this address really goes to: the kernel takes the unspecified address
    /// for localhost (`ip_route_output_key()`, `tcp_v6_connect()`).
    #[inline(always)]
    #[must_use]
    pub const fn destination(self) -> Self {
        if self.is_unspecified() { self.localhost() } else { self }
    }

    /// Localhost of the same family.
    #[inline(always)]
    #[must_use]
    pub const fn localhost(&self) -> Self {
        if self.is_v4() { Self::LOCALHOST4 } else { Self::LOCALHOST6 }
    }

    /// Whether both are the same. Derived comparison becomes a call to `memcmp` in eBPF; and one
    /// branch is less to walk for the verifier than four.
    #[inline(always)]
    #[must_use]
    pub const fn equals(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}
