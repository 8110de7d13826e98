//! What leaves the pod.

use super::Fate::{Direct, Inbound, Outbound};
use super::{Case, Ports, app, istio, outside, proxy, user};
use crate::topology::Spot::{Dns, Localhost, Localhost2, Other, Passthrough, Peer, Pod, Service};

pub(super) fn cases() -> Vec<Case> {
    vec![
        sidecar(),
        outbound_off(),
        included_networks(),
        excluded_networks(),
        networks_in_networks(),
        excluded_ports(),
        included_ports(),
        other_proxy_ports(),
        loopback_network_included(),
        wider_localhost(),
    ]
}

/// The flags that Istio's injector gives every sidecar.
pub fn sidecar() -> Case {
    istio(
        "sidecar",
        &[
            "-p",
            "15001",
            "-z",
            "15006",
            "-u",
            "1337",
            "-m",
            "REDIRECT",
            "-i",
            "*",
            "-x",
            "",
            "-b",
            "*",
            "-d",
            "15090,15021,15020",
            "--log_output_level=default:info",
        ],
        vec![
            app().tcp(Service, 80).gets(Outbound),
            app().tcp(Service, 443).gets(Outbound),
            app().tcp(Peer, 9999).gets(Outbound),
            // Nobody listens there: the proxy is asked all the same.
            app().tcp(Service, 81).gets(Outbound),
            user(0, 0).tcp(Service, 80).gets(Outbound),
            app().tcp(Dns, 53).gets(Outbound),
            app().udp(Dns, 53).gets(Direct),
            app().udp(Service, 9999).gets(Direct),
            app().tcp(Pod, 8080).gets(Direct),
            app().tcp(Localhost, 8080).gets(Direct),
            app().tcp(Localhost2, 8080).gets(Direct),
            proxy().tcp(Service, 80).gets(Direct),
            proxy().udp(Dns, 53).gets(Direct),
            proxy().tcp(Localhost, 8080).gets(Direct),
            proxy().tcp(Localhost2, 8080).gets(Inbound),
            proxy().tcp(Pod, 8080).gets(Inbound),
            proxy().tcp(Pod, 15008).gets(Direct),
            proxy().from(Passthrough).tcp(Pod, 8080).gets(Direct),
            outside().tcp(Pod, 8080).gets(Inbound),
            outside().tcp(Pod, 7777).gets(Inbound),
            outside().tcp(Pod, 15090).gets(Direct),
            outside().tcp(Pod, 15021).gets(Direct),
            outside().tcp(Pod, 15020).gets(Direct),
            outside().tcp(Pod, 15008).gets(Direct),
            outside().udp(Pod, 9090).gets(Direct),
        ],
    )
}

/// No networks: only inbound connections are captured.
pub fn outbound_off() -> Case {
    istio(
        "no outbound networks",
        &["-u", "1337", "-i", "", "-b", "*"],
        vec![
            app().tcp(Service, 80).gets(Direct),
            app().tcp(Other, 443).gets(Direct),
            proxy().tcp(Service, 80).gets(Direct),
            proxy().tcp(Pod, 8080).gets(Inbound),
            outside().tcp(Pod, 8080).gets(Inbound),
        ],
    )
}

/// Some networks.
pub fn included_networks() -> Case {
    istio(
        "included networks",
        &["-u", "1337", "-i", "10.71.0.0/16,fd71::/32", "-b", "*"],
        vec![
            app().tcp(Service, 80).gets(Outbound),
            app().tcp(Other, 80).gets(Direct),
            app().tcp(Peer, 80).gets(Direct),
            proxy().tcp(Service, 80).gets(Direct),
        ],
    )
}

/// All networks but some.
pub fn excluded_networks() -> Case {
    istio(
        "excluded networks",
        &["-u", "1337", "-i", "*", "-x", "10.72.0.0/16,fd72::/32", "-b", "*"],
        vec![
            app().tcp(Service, 80).gets(Outbound),
            app().tcp(Other, 80).gets(Direct),
            app().tcp(Peer, 80).gets(Outbound),
        ],
    )
}

/// A network that is included but for one address.
pub fn networks_in_networks() -> Case {
    istio(
        "an address left out of a network",
        &[
            "-u",
            "1337",
            "-i",
            "10.64.0.0/10,fd00::/8",
            "-x",
            "10.72.0.10/32,fd72::10/128",
            "-b",
            "*",
        ],
        vec![
            app().tcp(Service, 80).gets(Outbound),
            app().tcp(Peer, 80).gets(Outbound),
            app().tcp(Other, 80).gets(Direct),
        ],
    )
}

/// Ports left alone, wherever they are.
pub fn excluded_ports() -> Case {
    istio(
        "excluded outbound ports",
        &["-u", "1337", "-i", "*", "-b", "*", "-o", "443,9999"],
        vec![
            app().tcp(Service, 443).gets(Direct),
            app().tcp(Other, 9999).gets(Direct),
            app().udp(Service, 9999).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
            // The exclusion is of outbound ports, and holds for the proxy's self-calls too.
            proxy().tcp(Pod, 8080).gets(Inbound),
            outside().tcp(Pod, 443).gets(Inbound),
        ],
    )
}

/// Ports captured wherever they are, though their networks are not; an excluded network beats them.
pub fn included_ports() -> Case {
    istio(
        "included outbound ports",
        &["-u", "1337", "-i", "", "-x", "10.72.0.0/16,fd72::/32", "-q", "443", "-b", "*"],
        vec![
            app().tcp(Service, 443).gets(Outbound),
            app().tcp(Service, 80).gets(Direct),
            app().tcp(Other, 443).gets(Direct),
            proxy().tcp(Service, 443).gets(Direct),
        ],
    )
}

/// A proxy with other ports.
pub fn other_proxy_ports() -> Case {
    let case = istio(
        "other proxy ports",
        &["-p", "15101", "-z", "15106", "-e", "15108", "-u", "1337", "-i", "*", "-b", "*"],
        vec![
            app().tcp(Service, 80).gets(Outbound),
            outside().tcp(Pod, 8080).gets(Inbound),
            outside().tcp(Pod, 15108).gets(Direct),
            outside().tcp(Pod, 15008).gets(Inbound),
            proxy().tcp(Pod, 8080).gets(Inbound),
            proxy().tcp(Pod, 15108).gets(Direct),
        ],
    );
    Case { ports: Ports { outbound: 15101, inbound: 15106, ..case.ports }, ..case }
}

/// A network of localhost among the included ones: the application's calls there are captured.
pub fn loopback_network_included() -> Case {
    istio(
        "a loopback network included",
        &["-u", "1337", "-i", "127.0.0.2/32,10.71.0.0/16,fd71::/32", "-b", "*"],
        vec![
            app().tcp(Localhost2, 8080).gets(Outbound),
            app().tcp(Localhost, 8080).gets(Direct),
            app().tcp(Pod, 8080).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
            app().tcp(Other, 80).gets(Direct),
        ],
    )
}

/// All of 127.0.0.0/8 is localhost: the proxy reaches the application there.
pub fn wider_localhost() -> Case {
    istio(
        "a wider localhost",
        &["-u", "1337", "-i", "*", "-b", "*"],
        vec![
            proxy().tcp(Localhost2, 8080).gets(Direct),
            proxy().tcp(Localhost, 8080).gets(Direct),
            proxy().tcp(Pod, 8080).gets(Inbound),
            app().tcp(Localhost2, 8080).gets(Direct),
        ],
    )
    .env("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/8")
}
