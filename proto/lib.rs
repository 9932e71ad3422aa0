//! The `exchequer.v1` protocol as Rust types.
//!
//! Messages are always here; gRPC clients and servers only with the `grpc` feature, so that pure crates stay free of IO. The
//! meaning of every field is documented in the `.proto` files, the byte formats that are signed in `docs/protocol.md`.

/// `exchequer.v1`.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, clippy::pedantic)]
    include!(concat!(env!("OUT_DIR"), "/exchequer.v1.rs"));
}

/// The encoded `FileDescriptorSet` of the whole protocol, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Which field of a message holds what, for the records that are read by the million: as tables, made from the `.proto` files.
pub mod shape {
    /// The fields of a message by number; the first is number 0, which none has.
    #[derive(Debug)]
    pub struct Shape(pub &'static [Field]);

    /// What a field holds.
    #[derive(Debug)]
    pub enum Field {
        /// Nothing that a table tells.
        Unknown,
        /// One varint.
        Number,
        /// UTF-8.
        Text,
        /// Any bytes.
        Bytes,
        /// Another message.
        Message(&'static Shape),
    }

    include!(concat!(env!("OUT_DIR"), "/shapes.rs"));
}
