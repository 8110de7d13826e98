//! The words of a rule as `iptables-save` prints it, and the values among them.

use std::net::IpAddr;

use super::super::ranges::{Ranges, number};
use super::super::rule::Translation;
use crate::ruleset::Masked;
use crate::value::Cidr;

/// A word of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) text: String,
    /// Whether it stands in quotes, as no option does.
    pub(super) quoted: bool,
}

impl Word {
    /// Whether it may begin what is said of something else.
    pub(super) fn is_option(&self) -> bool {
        !self.quoted && (self.text.starts_with('-') || self.text == "!")
    }
}

/// Words; what stands in double quotes is one, with `\"` and `\\` in it.
pub(super) fn words(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut quoted = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => word.get_or_insert_default().text.extend(chars.next()),
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default().quoted = true;
            }
            c if c.is_ascii_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().text.push(c),
        }
    }
    words.extend(word);
    words
}

/// A number in decimal, hexadecimal or octal, as `strtoul()` takes it.
pub(super) fn int(text: &str) -> Option<u32> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u32::from_str_radix(hex, 16).ok();
    }
    match text.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => u32::from_str_radix(octal, 8).ok(),
        _ => text.parse().ok(),
    }
}

/// A number with an optional mask.
pub(super) fn masked(text: &str) -> Option<Masked> {
    match text.split_once('/') {
        Some((value, mask)) => Some(Masked { value: int(value)?, mask: int(mask)? }),
        None => int(text).map(Masked::exact),
    }
}

/// `first:last`, where either may be left out, or one port.
pub(super) fn port_range(text: &str) -> Option<Ranges> {
    let port = |text: &str, missing: u16| match text {
        "" => Some(missing),
        text => text.parse::<u16>().ok(),
    };
    let (first, last) = match text.split_once(':') {
        Some((first, last)) => (port(first, 0)?, port(last, u16::MAX)?),
        None => (text.parse().ok()?, text.parse().ok()?),
    };
    (first <= last).then(|| Ranges::range(first.into(), last.into()))
}

/// Ports and ranges with commas between them.
pub(super) fn port_list(text: &str) -> Option<Ranges> {
    let all: Vec<Ranges> = text.split(',').map(port_range).collect::<Option<_>>()?;
    Some(all.iter().flat_map(Ranges::iter).collect())
}

/// `first-last`, or one number.
pub(super) fn id_range(text: &str) -> Option<Ranges> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (int(first)?, int(last)?);
    (first <= last).then(|| Ranges::range(first.into(), last.into()))
}

/// `address`, `address/length` or `address/mask`.
pub(super) fn network(text: &str) -> Option<Cidr> {
    if let Ok(cidr) = Cidr::in_rule(text) {
        return Some(cidr);
    }
    let Some((address, mask)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(Cidr::host);
    };
    let (address, mask): (IpAddr, IpAddr) = (address.parse().ok()?, mask.parse().ok()?);
    let length = match mask {
        IpAddr::V4(mask) => {
            let ones = mask.to_bits().leading_ones();
            (mask.to_bits().count_ones() == ones).then_some(ones)?
        }
        IpAddr::V6(mask) => {
            let ones = mask.to_bits().leading_ones();
            (mask.to_bits().count_ones() == ones).then_some(ones)?
        }
    };
    Cidr::new(address, u8::try_from(length).ok()?)
}

/// A type of ICMP without a code, by its number, as iptables prints it.
pub(super) fn icmp_type(text: &str) -> Option<Ranges> {
    text.parse::<u8>().ok().filter(|kind| *kind != u8::MAX).map(|kind| Ranges::one(kind.into()))
}

/// Addresses of one family, `first-last`, or one alone.
pub(super) fn address_range(text: &str) -> Option<Ranges> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (IpAddr, IpAddr) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && first.is_ipv4() == last.is_ipv4())
        .then(|| Ranges::range(number(first), number(last)))
}

/// `first-last` of ports to translate to.
pub(super) fn to_ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// `address`, `address:port`, `:port`, `[address]:port`; ports may be a range.
pub(super) fn translation(text: &str) -> Option<Translation> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Translation { address: Some(address), ports: None });
    }
    let (address, ports) = text.rsplit_once(':')?;
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    let address = if bare.is_empty() { None } else { Some(bare.parse().ok()?) };
    Some(Translation { address, ports: Some(to_ports(ports)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_words_together() {
        let texts = |text| words(text).into_iter().map(|word| word.text).collect::<Vec<_>>();
        assert_eq!(
            texts(r#"-m comment --comment "a \"b\" c" -j X"#),
            ["-m", "comment", "--comment", r#"a "b" c"#, "-j", "X"]
        );
        assert_eq!(texts(r#"a "" b"#), ["a", "", "b"]);
        let options = words(r#"-j "-j" ! "!""#).iter().map(Word::is_option).collect::<Vec<_>>();
        assert_eq!(options, [true, false, true, false]);
    }

    #[test]
    fn values_are_read_as_iptables_does() {
        assert_eq!(
            (int("010"), int("0x10"), int("0"), int("1a")),
            (Some(8), Some(16), Some(0), None)
        );
        assert_eq!(port_range("80:"), Some(Ranges::range(80, 65535)));
        assert_eq!(port_range("90:80"), None);
        assert_eq!(network("10.0.0.0/255.0.0.0"), "10.0.0.0/8".parse().ok());
        assert_eq!(network("10.0.0.0/255.0.255.0"), None);
        let to = translation("[fd00::1]:80-90").unwrap();
        assert_eq!((to.address, to.ports), ("fd00::1".parse().ok(), Some((80, 90))));
        assert_eq!(translation("10.0.0.1-10.0.0.9"), None);
    }
}
