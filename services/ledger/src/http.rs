//! The static read path: the log's files over HTTP (C2SP tlog-tiles).
//!
//! Left out: the operators' routes. Invariant: only canonical paths of tiles that the newest checkpoint covers are read, so no path
//! leads out of the log; entries need the right to read every tenant unless the options make them public.

use axum::{
    Router,
    extract::{Path, State},
    http::{Extensions, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use exchequer_auth::Caller;
use exchequer_tlog::{BundleId, TileId};
use std::sync::Arc;

use crate::{
    standing::Standing,
    store::{LogReader, StoreError},
};

const IMMUTABLE: &str = "public, max-age=31536000, immutable";
const PRIVATE_IMMUTABLE: &str = "private, max-age=31536000, immutable";
const NO_CACHE: &str = "no-cache";
const TEXT: &str = "text/plain; charset=utf-8";
const OCTETS: &str = "application/octet-stream";

#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) reader: LogReader,
    pub(crate) standing: Arc<Standing>,
    pub(crate) verifier_key: String,
    pub(crate) public_entries: bool,
}

pub(crate) fn routes(files: Files) -> Router {
    Router::new()
        .route("/checkpoint", get(checkpoint))
        .route("/verifier-key", get(verifier_key))
        .route("/tile/{*path}", get(tile))
        .with_state(files)
}

fn answer(content_type: &'static str, cache: &'static str, body: impl IntoResponse) -> Response {
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, cache)], body).into_response()
}

async fn checkpoint(State(files): State<Files>) -> Response {
    let note = files.standing.published.borrow().note.clone();
    if note.is_empty() {
        return (StatusCode::NOT_FOUND, "no checkpoint has been signed yet\n").into_response();
    }
    answer(TEXT, NO_CACHE, note)
}

async fn verifier_key(State(files): State<Files>) -> Response {
    answer(TEXT, NO_CACHE, format!("{}\n", files.verifier_key))
}

/// What a path asks for.
enum Asked {
    Tile(TileId),
    Entries(BundleId),
}

async fn tile(State(files): State<Files>, Path(path): Path<String>, extensions: Extensions) -> Response {
    let path = format!("tile/{path}");
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
    let Some(asked) = asked else {
        return (StatusCode::NOT_FOUND, "no such tile under the newest checkpoint\n").into_response();
    };
    let cache = match asked {
        Asked::Entries(_) if !files.public_entries => PRIVATE_IMMUTABLE,
        _ => IMMUTABLE,
    };
    let read = tokio::task::spawn_blocking(move || match asked {
        Asked::Tile(id) => files.reader.tile_bytes(id),
        Asked::Entries(id) => files.reader.bundle_bytes(id),
    });
    match read
        .await
        .map_err(|error| error.to_string())
        .and_then(|read| read.map_err(|e: StoreError| e.to_string()))
    {
        Ok(bytes) => answer(OCTETS, cache, bytes),
        Err(error) => {
            tracing::error!(error, path, "a tile can't be read");
            (StatusCode::INTERNAL_SERVER_ERROR, "the log can't be read\n").into_response()
        }
    }
}
