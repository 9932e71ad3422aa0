//! Verification and export against real logs: whatever is changed is found and named, and what is whole holds.

mod directories;
mod exports;
mod follow;
mod keys;
mod lines;
mod ocsf;
mod packs;
mod receipts;
mod resume;
mod threads;
mod times;
mod urls;
mod witnesses;
mod world;
