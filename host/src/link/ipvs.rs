//! Virtual services of IPVS, which leads connections elsewhere beside all rules
//! (`net/netfilter/ipvs/ip_vs_ctl.c`).

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

/// The addresses of virtual services of the calling thread's namespace, and whether some are for marks,
/// whatever the address is.
pub(crate) fn services() -> (Vec<IpAddr>, bool) {
    // A kernel without IPVS has no such file.
    read(&fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default())
}

fn read(text: &str) -> (Vec<IpAddr>, bool) {
    let (mut addresses, mut by_mark) = (Vec::new(), false);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("TCP" | "UDP" | "SCTP"), Some(end)) => addresses.extend(address(end)),
            (Some("FWM"), _) => by_mark = true,
            _ => {}
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    (addresses, by_mark)
}

/// `0A600001:01BB` or `[fd00:...]:01BB`.
fn address(end: &str) -> Option<IpAddr> {
    let (address, _) = end.rsplit_once(':')?;
    match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse().ok(),
        None => u32::from_str_radix(address, 16).ok().map(|bits| Ipv4Addr::from(bits).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_as_the_kernel_lists_them() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port Forward Weight ActiveConn InActConn\nTCP  0A600001:01BB rr  \n  \
                    -> C0A80A01:1A0B      Masq    1      0          0         \n\
                    UDP  [fd00:0000:0000:0000:0000:0000:0000:000a]:0035 rr  \n";
        let expected = ["10.96.0.1", "fd00::a"].map(|address| address.parse().unwrap());
        assert_eq!(read(text), (expected.to_vec(), false));
        assert!(read(&format!("{text}FWM  00000001 wlc persistent 360\n")).1);
        assert_eq!(read(""), (Vec::new(), false));
    }
}
