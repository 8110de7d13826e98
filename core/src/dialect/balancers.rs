//! Load balancers of others at the sockets of a node, which decide there before a mesh's capture can: by
//! what their programs are known, and how they are told to leave pods alone.

/// A load balancer at the sockets.
#[derive(Debug, PartialEq, Eq)]
pub struct SocketBalancer {
    /// The project that it is part of, as messages say it.
    pub name: &'static str,
    /// With what the names of its programs begin.
    programs: &'static [&'static str],
    /// How it is told to leave pods alone.
    pub leave_pods: &'static str,
}

/// Those that are recognised, by how the names of their programs begin.
const ALL: [SocketBalancer; 2] = [
    SocketBalancer {
        name: "Cilium",
        programs: &["cil_sock", "sock4_", "sock6_"],
        leave_pods: "set socketLB.hostNamespaceOnly=true there",
    },
    SocketBalancer {
        name: "Calico",
        programs: &["calico_"],
        leave_pods: "set bpfConnectTimeLoadBalancing to Disabled in its FelixConfiguration",
    },
];

impl SocketBalancer {
    /// Whose a program with this name looks to be; none where nobody is known by it.
    pub fn of(program: &str) -> Option<&'static Self> {
        let has = |prefix: &&str| program.starts_with(*prefix);
        ALL.iter().find(|balancer| balancer.programs.iter().any(has))
    }
}
