//! DNS queries, by UDP and TCP.

use super::Fate::{self, Direct, Inbound, Outbound};
use super::{Case, app, istio, outside, proxy, user};
use crate::topology::Layout;
use crate::topology::Spot::{Dns, LocalDns, Localhost, OtherDns, Pod, Service};

/// A source port for two queries with the same addresses and ports, of application and proxy.
const SAME_PORT: u16 = 40_053;

pub(super) fn cases() -> Vec<Case> {
    vec![
        dns_servers(),
        dns_all(),
        dns_excluded_port(),
        dns_without_servers_asked(),
        dns_on_localhost(),
    ]
}

/// Queries to the servers of resolv.conf, and no others.
pub fn dns_servers() -> Case {
    istio(
        "DNS to the pod's servers",
        &["-u", "1337", "-i", "*", "-b", "*", "--redirect-dns"],
        vec![
            app().udp(Dns, 53).gets(Fate::Dns),
            app().tcp(Dns, 53).gets(Fate::Dns),
            user(0, 0).udp(Dns, 53).gets(Fate::Dns),
            app().udp(OtherDns, 53).gets(Direct),
            app().tcp(OtherDns, 53).gets(Outbound),
            proxy().udp(Dns, 53).gets(Direct),
            proxy().tcp(Dns, 53).gets(Direct),
            proxy().udp(OtherDns, 53).gets(Direct),
            // Connection tracking must not take the proxy's query for the application's, which
            // had the same addresses and ports.
            app().from_port(SAME_PORT).udp(Dns, 53).gets(Fate::Dns),
            proxy().from_port(SAME_PORT).udp(Dns, 53).gets(Direct),
            app().from_port(SAME_PORT).udp(Dns, 53).gets(Fate::Dns),
            app().tcp(Service, 80).gets(Outbound),
            app().tcp(Pod, 8080).gets(Direct),
            proxy().tcp(Pod, 8080).gets(Inbound),
            outside().tcp(Pod, 8080).gets(Inbound),
        ],
    )
}

/// Every query.
pub fn dns_all() -> Case {
    istio(
        "all DNS",
        &["-u", "1337", "-i", "*", "-b", "*", "--redirect-dns", "--capture-all-dns"],
        vec![
            app().udp(Dns, 53).gets(Fate::Dns),
            app().tcp(Dns, 53).gets(Fate::Dns),
            app().udp(OtherDns, 53).gets(Fate::Dns),
            app().tcp(OtherDns, 53).gets(Fate::Dns),
            app().udp(Service, 9999).gets(Direct),
            proxy().udp(Dns, 53).gets(Direct),
            proxy().tcp(OtherDns, 53).gets(Direct),
            app().from_port(SAME_PORT).udp(OtherDns, 53).gets(Fate::Dns),
            proxy().from_port(SAME_PORT).udp(OtherDns, 53).gets(Direct),
            app().from_port(SAME_PORT).udp(OtherDns, 53).gets(Fate::Dns),
            app().tcp(Service, 80).gets(Outbound),
            proxy().tcp(Pod, 8080).gets(Inbound),
        ],
    )
}

/// Port 53 left alone beats DNS capture, for both protocols.
pub fn dns_excluded_port() -> Case {
    istio(
        "DNS with port 53 excluded",
        &["-u", "1337", "-i", "*", "-b", "*", "-o", "53", "--redirect-dns", "--capture-all-dns"],
        vec![
            app().udp(Dns, 53).gets(Direct),
            app().tcp(Dns, 53).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
        ],
    )
}

/// All DNS is asked for, but not DNS capture itself: nothing happens.
pub fn dns_without_servers_asked() -> Case {
    istio(
        "all DNS without DNS",
        &["-u", "1337", "-i", "*", "-b", "*", "--capture-all-dns"],
        vec![app().udp(Dns, 53).gets(Direct), app().tcp(Dns, 53).gets(Outbound)],
    )
}

/// A DNS cache on localhost: its queries are captured though localhost is not.
pub fn dns_on_localhost() -> Case {
    istio(
        "DNS to a server on localhost",
        &["-u", "1337", "-i", "*", "-b", "*", "--redirect-dns"],
        vec![
            app().udp(LocalDns, 53).gets(Fate::Dns),
            app().tcp(LocalDns, 53).gets(Fate::Dns),
            proxy().udp(LocalDns, 53).gets(Direct),
            proxy().tcp(LocalDns, 53).gets(Direct),
            app().tcp(Localhost, 8080).gets(Direct),
            app().udp(OtherDns, 53).gets(Direct),
        ],
    )
    .layout(Layout { local_dns: true, ..Layout::default() })
}
