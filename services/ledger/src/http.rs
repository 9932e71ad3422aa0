//! The static read path: the log's files over HTTP (C2SP tlog-tiles), for caches to keep: immutable where they are, with entity tags,
//! and bundles compressed for those who ask.
//!
//! Left out: the operators' routes, ranges. Invariant: only canonical paths of tiles that the newest checkpoint covers are read, so no
//! path leads out of the log; entries need the right to read every tenant unless the options make them public.

use std::{io::Write as _, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{Extensions, HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use exchequer_auth::Caller;
use exchequer_tlog::{BundleId, TileId};
use flate2::{Compression, write::GzEncoder};

use crate::{
    key::LedgerKey,
    standing::Standing,
    store::{LogReader, StoreError},
};

const IMMUTABLE: &str = "public, max-age=31536000, immutable";
const PRIVATE_IMMUTABLE: &str = "private, max-age=31536000, immutable";
const NO_CACHE: &str = "no-cache";
const TEXT: &str = "text/plain; charset=utf-8";
const OCTETS: &str = "application/octet-stream";
/// BLAKE3 `derive_key` context of entity tags.
const TAG_CONTEXT: &str = "exchequer.v1 entity tag";

#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) reader: LogReader,
    pub(crate) standing: Arc<Standing>,
    pub(crate) key: LedgerKey,
    pub(crate) public_entries: bool,
}

pub(crate) fn routes(files: Files) -> Router {
    Router::new()
        .route("/checkpoint", get(checkpoint))
        .route("/verifier-key", get(verifier_key))
        .route("/tile/{*path}", get(tile))
        .with_state(files)
}

/// A file that is there.
struct File {
    content_type: &'static str,
    cache: &'static str,
    bytes: Bytes,
    /// Whether it may be compressed, and so differs by what the client accepts.
    varies: bool,
}

/// What a request says of the answer that it wants.
struct Wanted {
    takes_gzip: bool,
    /// Entity tags that the client holds; `*` for any.
    held: Vec<String>,
}

impl Wanted {
    fn of(headers: &HeaderMap) -> Self {
        let list = |name| {
            let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|value| value.split(',')).map(|item| item.trim().to_owned()).collect::<Vec<_>>()
        };
        // Tags are compared weakly here (RFC 9110, section 13.1.2).
        let held = list(header::IF_NONE_MATCH);
        let held = held.into_iter().map(|tag| tag.trim_start_matches("W/").to_owned()).collect();
        Self { takes_gzip: takes_gzip(&list(header::ACCEPT_ENCODING)), held }
    }
}

/// Whether a list of codings accepts gzip: by name, or else by `*`, with a weight above 0.
fn takes_gzip(codings: &[String]) -> bool {
    let weight = |wanted: &[&str]| {
        codings.iter().find_map(|item| {
            let (coding, parameters) = item.split_once(';').unwrap_or((item, ""));
            let is_it = wanted.iter().any(|wanted| coding.trim().eq_ignore_ascii_case(wanted));
            let weight = parameters.trim().trim_start_matches(['q', 'Q']).trim_start_matches('=');
            is_it.then(|| if weight.is_empty() { 1.0 } else { weight.parse::<f32>().unwrap_or(0.0) })
        })
    };
    weight(&["gzip", "x-gzip"]).or_else(|| weight(&["*"])).is_some_and(|weight| weight > 0.0)
}

impl File {
    fn text(bytes: Bytes) -> Self {
        Self { content_type: TEXT, cache: NO_CACHE, bytes, varies: false }
    }

    /// The whole file, or that the client has it.
    fn answer(self, wanted: &Wanted) -> Response {
        let is_gzip = self.varies && wanted.takes_gzip;
        let digest = blake3::derive_key(TAG_CONTEXT, &self.bytes);
        // Another encoding is another representation, so it has a tag of its own.
        let tag = format!("\"{}{}\"", hex::encode(&digest[..16]), if is_gzip { "-gzip" } else { "" });
        let is_held = wanted.held.iter().any(|held| *held == tag || held == "*");
        let mut response = if is_held {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let body = if is_gzip { gzip(&self.bytes) } else { self.bytes };
            let mut response = body.into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
            if is_gzip {
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
            response
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(self.cache));
        if self.varies {
            headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
        if let Ok(tag) = HeaderValue::try_from(tag) {
            headers.insert(header::ETAG, tag);
        }
        response
    }
}

fn gzip(bytes: &[u8]) -> Bytes {
    // Whoever reads much reads through a cache, which asks once.
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("a Vec takes all").into()
}

/// That there is no such file, now: nobody is to remember that.
fn missing(reason: &'static str) -> Response {
    (StatusCode::NOT_FOUND, [(header::CACHE_CONTROL, NO_CACHE)], reason).into_response()
}

async fn checkpoint(State(files): State<Files>, headers: HeaderMap) -> Response {
    let note = files.standing.published.borrow().note.clone();
    if note.is_empty() {
        return missing("no checkpoint has been signed yet\n");
    }
    File::text(note).answer(&Wanted::of(&headers))
}

async fn verifier_key(State(files): State<Files>, headers: HeaderMap) -> Response {
    File::text(format!("{}\n", files.key.current().verifier_key).into()).answer(&Wanted::of(&headers))
}

/// What a path asks for.
enum Asked {
    Tile(TileId),
    Entries(BundleId),
}

async fn tile(State(files): State<Files>, uri: Uri, headers: HeaderMap, extensions: Extensions) -> Response {
    // As it was sent: a path that needs decoding is not canonical.
    let path = uri.path().trim_start_matches('/').to_owned();
    let size = files.standing.published.borrow().size;
    let asked = if let Ok(id) = path.parse::<BundleId>() {
        if !files.public_entries {
            match Caller::of(&extensions) {
                Err(error) => return error.into_response(),
                Ok(caller) => {
                    if let Err(denied) = caller.may_read_all() {
                        return denied.into_response();
                    }
                }
            }
        }
        let there = BundleId::in_tree(id.index(), size).is_some_and(|there| id.width() <= there.width());
        there.then_some(Asked::Entries(id))
    } else if let Ok(id) = path.parse::<TileId>() {
        let there =
            TileId::in_tree(id.level(), id.index(), size).is_some_and(|there| id.width() <= there.width());
        there.then_some(Asked::Tile(id))
    } else {
        None
    };
    let Some(asked) = asked else { return missing("no such tile under the newest checkpoint\n") };
    let (cache, varies) = match asked {
        Asked::Tile(_) => (IMMUTABLE, false),
        Asked::Entries(_) => (if files.public_entries { IMMUTABLE } else { PRIVATE_IMMUTABLE }, true),
    };
    let wanted = Wanted::of(&headers);
    let answered = tokio::task::spawn_blocking(move || {
        let bytes = match asked {
            Asked::Tile(id) => files.reader.tile_bytes(id),
            Asked::Entries(id) => files.reader.bundle_bytes(id),
        }?;
        Ok(File { content_type: OCTETS, cache, bytes: bytes.into(), varies }.answer(&wanted))
    });
    let answered = answered.await.map_err(|error| error.to_string());
    answered.and_then(|read| read.map_err(|e: StoreError| e.to_string())).unwrap_or_else(|error| {
        tracing::error!(error, path, "a tile can't be read");
        (StatusCode::INTERNAL_SERVER_ERROR, [(header::CACHE_CONTROL, NO_CACHE)], "the log can't be read\n")
            .into_response()
    })
}

#[cfg(test)]
mod tests {
    use super::takes_gzip;

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for (codings, expected) in [
            ("", false),
            ("gzip", true),
            ("br, GZIP", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000", false),
            ("gzip;q=0.1", true),
            ("*", true),
            ("*;q=0", false),
            ("*, gzip;q=0", false),
            ("identity, *;q=0, x-gzip", true),
            ("gzip;q=nonsense", false),
            ("gzippy", false),
        ] {
            let list: Vec<_> = codings.split(',').map(|item| item.trim().to_owned()).collect();
            assert_eq!(takes_gzip(&list), expected, "{codings}");
        }
    }
}
