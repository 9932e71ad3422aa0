//! What `exchequer up` serves to programs that don't know it: gRPC by reflection alone, and the log's files over plain HTTP; and
//! that it rests while nobody asks.
//!
//! Left out: what the answers prove.

use std::{collections::BTreeMap, time::Duration};

use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor,
    prost::Message as _,
    prost_types::{FileDescriptorProto, FileDescriptorSet},
};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::up::{Up, until};

const SERVICE: &str = "exchequer.v1.LedgerService";
/// How long the process is watched at rest.
const WATCHED: Duration = Duration::from_secs(3);
/// Linux counts CPU time for programs in hundredths of a second.
const TICKS_PER_SECOND: u64 = 100;
/// Part of one core, in hundredths, that a process at rest may use.
const AT_REST_PERCENT: u64 = 5;

/// Messages of a type that is known only at run time; the type is the answer's.
#[derive(Clone)]
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, message: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

async fn reflected(channel: &Channel, asked: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(asked) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap()
}

/// The file that declares a symbol, and every file that it needs.
async fn descriptors(channel: &Channel, symbol: &str) -> DescriptorPool {
    let mut files = BTreeMap::new();
    let mut wanted = vec![MessageRequest::FileContainingSymbol(symbol.to_owned())];
    while let Some(asked) = wanted.pop() {
        let MessageResponse::FileDescriptorResponse(answer) = reflected(channel, asked).await else {
            panic!("no descriptors");
        };
        for bytes in answer.file_descriptor_proto {
            let file = FileDescriptorProto::decode(&bytes[..]).unwrap();
            let missing = file.dependency.iter().filter(|name| !files.contains_key(*name));
            wanted.extend(missing.cloned().map(MessageRequest::FileByFilename));
            files.insert(file.name().to_owned(), file);
        }
    }
    DescriptorPool::from_file_descriptor_set(FileDescriptorSet { file: files.into_values().collect() })
        .unwrap()
}

#[tokio::test]
async fn a_client_that_knows_nothing_finds_and_calls_a_method_by_reflection() {
    let up = Up::start();
    let url = format!("http://{}", up.client("grpc"));
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let listed = reflected(&channel, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else { panic!("no list of services") };
    let names: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
    for name in [SERVICE, "exchequer.v1.MeteringService", "exchequer.v1.AgentService"] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }

    let pool = descriptors(&channel, SERVICE).await;
    let service = pool.get_service_by_name(SERVICE).unwrap();
    let method = service.methods().find(|method| method.name() == "GetCheckpoint").unwrap();
    let call = async |token: Option<String>| {
        let mut request = Request::new(DynamicMessage::new(method.input()));
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        let path = PathAndQuery::from_static("/exchequer.v1.LedgerService/GetCheckpoint");
        let mut client = Grpc::new(channel.clone());
        client.ready().await.unwrap();
        client.unary(request, path, Dynamic(method.output())).await
    };
    assert_eq!(call(None).await.unwrap_err().code(), Code::Unauthenticated);
    let answer = call(Some(up.client("token"))).await.unwrap().into_inner();
    let key = answer.get_field_by_name("verifier_key").unwrap();
    assert_eq!(key.as_str(), Some(&*up.client("verifier_key")));
    let checkpoint = answer.get_field_by_name("checkpoint").unwrap();
    assert!(checkpoint.as_bytes().unwrap().starts_with(b"exchequer.local/log\n"));
}

async fn get(url: &str, token: Option<&str>) -> (u16, Vec<u8>) {
    let mut request = reqwest::Client::new().get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
}

#[tokio::test]
async fn checkpoint_and_hash_tiles_are_public_and_entries_are_for_auditors() {
    let up = Up::start();
    let (status, checkpoint) = get(&format!("{}/checkpoint", up.url()), None).await;
    let checkpoint = String::from_utf8(checkpoint).unwrap();
    assert_eq!(status, 200, "{checkpoint}");
    let size: usize = checkpoint.lines().nth(1).unwrap().parse().unwrap();
    assert!((1..256).contains(&size), "{checkpoint}");

    let (status, hashes) = get(&format!("{}/tile/0/000.p/{size}", up.url()), None).await;
    assert_eq!((status, hashes.len()), (200, size * 32));

    let entries = format!("{}/tile/entries/000.p/{size}", up.url());
    assert_eq!(get(&entries, None).await.0, 401);
    let user = up.token(&["--subject", "alice", "--tenant", "acme", "--role", "user"]);
    assert_eq!(get(&entries, Some(&user)).await.0, 403);
    let auditor = up.token(&["--subject", "audit", "--role", "auditor"]);
    let (status, bundle) = get(&entries, Some(&auditor)).await;
    assert_eq!(status, 200);
    let length = usize::from(u16::from_be_bytes([bundle[0], bundle[1]]));
    let leaf = exchequer_tlog::leaf_hash(&bundle[2..2 + length]);
    assert_eq!(leaf.0[..], hashes[..32]);
}

#[test]
fn a_process_that_nobody_asks_is_at_rest() {
    let up = Up::start();
    // What the start left to do may take a while; a busy loop never ends.
    until("a quiet while", || {
        let before = up.cpu_ticks();
        std::thread::sleep(WATCHED);
        let used = up.cpu_ticks() - before;
        (used * 100 <= AT_REST_PERCENT * WATCHED.as_secs() * TICKS_PER_SECOND).then_some(())
    });
}
