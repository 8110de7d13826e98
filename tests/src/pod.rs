//! A pod, and somebody outside it: two namespaces and the wire between them.

use crate::namespace::Namespace;

/// Which addresses a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both, IPv4 first.
    Dual,
}

impl Families {
    /// Whether there is an IPv4 address.
    pub const fn v4(self) -> bool {
        matches!(self, Self::V4 | Self::Dual)
    }

    /// Whether there is an IPv6 address.
    pub const fn v6(self) -> bool {
        matches!(self, Self::V6 | Self::Dual)
    }
}

/// A pod (`eth0`: 10.4.0.2, `fd00:4::2`) that reaches the world by `outside` (10.4.0.1, `fd00:4::1`),
/// which has a second network behind it (10.5.0.1, `fd00:5::1` on `lo`).
#[derive(Debug)]
pub struct Pod {
    /// The pod.
    pub pod: Namespace,
    /// Who is outside.
    pub outside: Namespace,
}

impl Pod {
    /// The pod's addresses.
    pub const ADDRESSES: [&str; 2] = ["10.4.0.2", "fd00:4::2"];
    /// The addresses of the neighbour outside.
    pub const NEIGHBOUR: [&str; 2] = ["10.4.0.1", "fd00:4::1"];
    /// The addresses of somebody further away.
    pub const FAR: [&str; 2] = ["10.5.0.1", "fd00:5::1"];

    /// Make one.
    pub fn new(families: Families) -> Self {
        let this = Self { pod: Namespace::new(), outside: Namespace::new() };
        this.wire("eth0", families, ["10.4.0", "fd00:4:"]);
        let outside = |args: &[&str]| {
            this.outside.run("ip", args).ok();
        };
        let pod = |args: &[&str]| {
            this.pod.run("ip", args).ok();
        };
        if families.v4() {
            outside(&["address", "add", "10.5.0.1/32", "dev", "lo"]);
            pod(&["route", "add", "default", "via", "10.4.0.1"]);
        }
        if families.v6() {
            outside(&["address", "add", "fd00:5::1/128", "dev", "lo"]);
            pod(&["-6", "route", "add", "default", "via", "fd00:4::1"]);
        }
        this
    }

    /// Join pod and outside by one more wire; `nets` are the beginnings of its addresses, the pod
    /// is `.2` and `:2`, outside is `.1` and `:1`. The wire's other end has the same name.
    pub fn wire(&self, name: &str, families: Families, nets: [&str; 2]) {
        let (pod, outside) = (&self.pod, &self.outside);
        let args =
            ["link", "add", name, "type", "veth", "peer", "name", name, "netns", outside.name()];
        pod.run("ip", &args).ok();
        for (namespace, host) in [(pod, "2"), (outside, "1")] {
            namespace.run("ip", &["link", "set", name, "up"]).ok();
            if families.v4() {
                let address = format!("{}.{host}/24", nets[0]);
                namespace.run("ip", &["address", "add", &address, "dev", name]).ok();
            }
            if families.v6() {
                let address = format!("{}:{host}/64", nets[1]);
                // Nobody else has the address, so nobody has to be asked (RFC 4862 section 5.4).
                namespace.run("ip", &["address", "add", &address, "dev", name, "nodad"]).ok();
            }
        }
    }
}
