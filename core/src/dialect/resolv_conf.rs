//! `resolv.conf(5)`, as far as the servers go.

use std::net::IpAddr;

/// The name servers of a `resolv.conf`, in order. What is no address is left out, as the C
/// library does. A zone (`fe80::1%eth0`) is dropped: rules match the address alone.
pub(super) fn servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        })
        .filter_map(|address| address.split('%').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_skips_what_is_no_address() {
        let text = "# c\nsearch a b\nnameserver 10.96.0.10\nnameserver ::127.0.0.53 # x\n\
                    nameserver fe80::1%eth0\nnameserver dns.example\nnameserver\nnameservers 1.1.1.1\n";
        let servers: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.96.0.10", "::7f00:35", "fe80::1"]);
    }
}
