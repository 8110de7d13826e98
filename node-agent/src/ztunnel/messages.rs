//! The messages of ZDS, protobuf package `istio.workload.zds`, version [`Version::V1`]: as ztunnel's
//! `proto/zds.proto` numbers them (commit 62d82653; Istio's `pkg/zdsapi/zds.proto` of 86c9f01f has the same).

use prost::{Enumeration, Message, Oneof};

/// Bytes of the longest message that ztunnel reads (`read_message` in its `src/inpod/protocol.rs`). It takes
/// a longer one for a broken connection, and would do so after each new one.
pub const LONGEST: usize = 1024;

/// Versions of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Version {
    /// What a message without a version says.
    NotUsed = 0,
    /// The only one there is.
    V1 = 1,
}

/// The first message on a connection, sent by ztunnel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct ZdsHello {
    /// A [`Version`].
    #[prost(enumeration = "Version", tag = "1")]
    pub version: i32,
}

/// Names of a pod, from which ztunnel makes its identity. 4 was a trust domain once.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct WorkloadInfo {
    /// `metadata.name`
    #[prost(string, tag = "1")]
    pub name: String,
    /// `metadata.namespace`
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// `spec.serviceAccountName`
    #[prost(string, tag = "3")]
    pub service_account: String,
}

/// Serve a pod, whose network namespace is the one file descriptor that comes with the message.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct AddWorkload {
    /// `metadata.uid`
    #[prost(string, tag = "1")]
    pub uid: String,
    /// ztunnel ends the connection where it is missing.
    #[prost(message, optional, tag = "2")]
    pub workload_info: Option<WorkloadInfo>,
}

/// Go on serving a pod if it is served; only before [`SnapshotSent`].
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct KeepWorkload {
    /// `metadata.uid`
    #[prost(string, tag = "1")]
    pub uid: String,
}

/// Serve a pod no longer.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct DelWorkload {
    /// `metadata.uid`; the number is 2 here alone.
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// Pods that were not named on this connection are to be served no longer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct SnapshotSent {}

/// What the agent sends.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct WorkloadRequest {
    /// ztunnel takes a request without one for an error.
    #[prost(oneof = "Request", tags = "1, 2, 3, 5")]
    pub payload: Option<Request>,
}

/// The kinds of a [`WorkloadRequest`].
#[derive(Clone, PartialEq, Eq, Hash, Oneof)]
pub enum Request {
    /// Comes with one file descriptor; the others come with none.
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    /// Without a file descriptor.
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    /// Once on a connection.
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    /// Without a file descriptor, and before the snapshot is complete.
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

/// What ztunnel sends: one for each request, in order, and nothing else.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct WorkloadResponse {
    /// None is no answer.
    #[prost(oneof = "Response", tags = "1")]
    pub payload: Option<Response>,
}

/// The kinds of a [`WorkloadResponse`].
#[derive(Clone, PartialEq, Eq, Hash, Oneof)]
pub enum Response {
    /// The request was dealt with.
    #[prost(message, tag = "1")]
    Ack(Ack),
}

/// How a request was dealt with.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Ack {
    /// What failed; empty where nothing did.
    #[prost(string, tag = "1")]
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(payload: Request) -> Vec<u8> {
        WorkloadRequest { payload: Some(payload) }.encode_to_vec()
    }

    /// Verify the bytes, written here by hand from the `.proto`: a tag is `number << 3 | 2` before a length.
    #[test]
    fn messages_have_the_numbers_of_the_protocol() {
        let uid = || "u".to_owned();
        let info = WorkloadInfo {
            name: "n".to_owned(),
            namespace: "s".to_owned(),
            service_account: "a".to_owned(),
        };
        let add = Request::Add(AddWorkload { uid: uid(), workload_info: Some(info) });
        let inner = b"\x0a\x01n\x12\x01s\x1a\x01a";
        assert_eq!(request(add), [b"\x0a\x0e\x0a\x01u\x12\x09".as_slice(), inner].concat());
        assert_eq!(request(Request::Del(DelWorkload { uid: uid() })), b"\x12\x03\x12\x01u");
        assert_eq!(request(Request::SnapshotSent(SnapshotSent {})), b"\x1a\x00");
        assert_eq!(request(Request::Keep(KeepWorkload { uid: uid() })), b"\x2a\x03\x0a\x01u");
        assert_eq!(ZdsHello { version: Version::V1.into() }.encode_to_vec(), b"\x08\x01");
        for (bytes, error) in [(b"\x0a\x00".as_slice(), ""), (b"\x0a\x05\x0a\x03bad", "bad")] {
            let ack = Response::Ack(Ack { error: error.to_owned() });
            let response = WorkloadResponse { payload: Some(ack) };
            assert_eq!(response.encode_to_vec(), bytes);
            assert_eq!(WorkloadResponse::decode(bytes), Ok(response));
        }
        // A later version may say more.
        assert!(WorkloadResponse::decode(b"\x0a\x00\x7a\x01x".as_slice()).is_ok());
        assert_eq!(WorkloadResponse::decode(b"".as_slice()).map(|r| r.payload), Ok(None));
    }
}
