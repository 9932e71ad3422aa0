//! Verification and export against real logs: whatever is changed is found and named, and what is whole holds.

mod directories;
mod exports;
mod keys;
mod packs;
mod threads;
mod urls;
mod witnesses;
mod world;
