//! Facts about the host that resolving a configuration needs. `host` gathers them; tests make
//! them up.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::source::{Source, Sourced};
use crate::value::{Family, Gid, GroupName, Uid};

/// What a pod is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The addresses of all interfaces in the kernel's order, IPv4 first, down interfaces
    /// included.
    pub addresses: Vec<IpAddr>,
    /// The text of `/etc/resolv.conf`, or why it could not be read.
    pub resolv_conf: Option<Result<String, String>>,
    /// User ids by name, from `/etc/passwd`; empty where that can't be read.
    pub users: BTreeMap<String, Uid>,
    /// Group ids by name, from `/etc/group`; empty where that can't be read.
    pub groups: BTreeMap<GroupName, Gid>,
}

impl HostFacts {
    /// Addresses that others can reach the pod at: not loopback, not link-local (RFC 4291
    /// section 2.5.6, RFC 3927), not unspecified. IPv4-mapped ones are unmapped.
    pub fn usable_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(IpAddr::to_canonical).filter(|address| match address {
            IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local() && !is_local_multicast_v4(*a),
            IpAddr::V6(a) => {
                !a.is_loopback()
                    && !a.is_unicast_link_local()
                    && a.segments()[0] & 0xff0f != 0xff02
                    && a.octets() != PASSTHROUGH_V6
            }
        })
    }

    /// Whether any interface has IPv6, `lo` with `::1` too: `::6` is there by capture alone.
    pub fn has_v6(&self) -> bool {
        let v6 =
            |address: &IpAddr| matches!(address, IpAddr::V6(a) if a.octets() != PASSTHROUGH_V6);
        self.addresses.iter().any(v6)
    }

    /// What to say where somebody asks for IPv6 to be captured and no interface has it; none elsewhere.
    pub fn absent_v6(&self, wanted: &Sourced<bool>) -> Option<String> {
        let source = &wanted.source;
        let asked = matches!(
            source,
            Source::Flag(_) | Source::Env(_) | Source::Annotation(_) | Source::File(_)
        );
        (wanted.value && asked && !self.has_v6()).then(|| {
            format!(
                "IPv6 is to be captured ({source}), and no interface has an IPv6 address: where it is \
                 switched off, set the sysctl net.ipv6.conf.all.disable_ipv6 to 0; until there is one, \
                 rules for IPv6 have nothing to capture"
            )
        })
    }

    /// What to say of a pod whose IPv6 is not captured; none where it has no address of IPv6.
    pub fn uncaptured_v6(&self) -> Option<&'static str> {
        let is_there = self.usable_addresses().any(|a| Family::of(a) == Family::V6);
        is_there.then_some("IPv6 is not captured, and there is an IPv6 address")
    }
}

/// `::6`, which capture itself puts on `lo`.
const PASSTHROUGH_V6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];

const fn is_local_multicast_v4(address: std::net::Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    a == 224 && b == 0 && c == 0
}

/// Users and their ids from the text of `/etc/passwd` (`passwd(5)`). Lines that are not entries
/// are skipped, as the C library does; the first entry of a name counts.
pub fn users(passwd: &str) -> BTreeMap<String, Uid> {
    let mut users = BTreeMap::new();
    for line in passwd.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(_), Some(Ok(uid))) =
            (fields.next(), fields.next(), fields.next().map(str::parse))
        {
            users.entry(name.to_owned()).or_insert(uid);
        }
    }
    users
}

/// Groups and their ids from the text of `/etc/group` (`group(5)`), as [`users`] does.
pub fn groups(group: &str) -> BTreeMap<GroupName, Gid> {
    let mut groups = BTreeMap::new();
    for line in group.lines() {
        let mut fields = line.split(':');
        if let (Some(Ok(name)), Some(_), Some(Ok(gid))) =
            (fields.next().map(str::parse), fields.next(), fields.next().map(str::parse))
        {
            groups.entry(name).or_insert(gid);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_that_is_asked_for_and_not_there_is_told() {
        let told = |list: &[&str], value, source: Source| {
            let addresses = list.iter().filter_map(|text| text.parse().ok()).collect();
            let facts = HostFacts { addresses, ..HostFacts::default() };
            facts.absent_v6(&Sourced::new(value, source)).is_some()
        };
        let flag = || Source::Flag("--ipv6".to_owned());
        assert!(told(&["127.0.0.1", "10.0.0.1", "::6"], true, flag()));
        assert!(!told(&["127.0.0.1", "10.0.0.1", "::1"], true, flag()));
        assert!(!told(&["127.0.0.1", "10.0.0.1"], false, flag()));
        // As a mesh's tool does where nobody says anything.
        assert!(!told(&["127.0.0.1"], true, Source::Default("--ipv6".to_owned())));
    }

    #[test]
    fn finds_users_and_groups_between_bad_lines() {
        let users = users(
            "root:x:0:0::/:/bin/sh\n\n# no\nistio-proxy:x:1337:1337::/:\nroot:x:5:5::\nbad:x:y\n",
        );
        assert_eq!(users.len(), 2);
        assert_eq!(users["istio-proxy"].get(), 1337);
        assert_eq!(users["root"].get(), 0);
        let groups = groups("java:x:202:\nbad name:x:3:\n");
        assert_eq!(groups.len(), 1);
    }

    #[test]
    fn local_addresses_are_not_usable() {
        let facts = HostFacts {
            addresses: [
                "127.0.0.1",
                "169.254.1.1",
                "::1",
                "fe80::1",
                "::6",
                "::ffff:10.0.0.1",
                "fd00::1",
            ]
            .map(|a| a.parse().unwrap())
            .to_vec(),
            ..HostFacts::default()
        };
        let usable: Vec<String> = facts.usable_addresses().map(|a| a.to_string()).collect();
        assert_eq!(usable, ["10.0.0.1", "fd00::1"]);
    }

    #[test]
    fn ipv6_that_passes_is_told() {
        let reported = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            HostFacts { addresses, ..HostFacts::default() }.uncaptured_v6()
        };
        assert_eq!(reported(&["127.0.0.1", "10.0.0.1", "::1", "::6"]), None);
        assert!(reported(&["::1", "fe80::1", "fd00::1"]).unwrap().ends_with("an IPv6 address"));
        // Every interface has one, also where a cluster has no IPv6.
        assert_eq!(reported(&["10.0.0.1", "fe80::1", "::6"]), None);
    }
}
