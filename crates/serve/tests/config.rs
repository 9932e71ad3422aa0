//! The sections that all daemons share.
#![allow(clippy::unwrap_used, missing_docs)]

use exchequer_config::{Fault, Reader};
use exchequer_serve::StreamOptions;

#[test]
fn keys_of_the_stream_without_its_url_are_faults() {
    let read = |text: &str, flags: &[(&str, &str)]| {
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut reader = Reader::new(Some(("file", text)), std::iter::empty(), flags);
        let options = StreamOptions::read(&mut reader);
        (options, reader.finish().map_err(|faults| faults.list().to_vec()).err().unwrap_or_default())
    };
    let credentials = exchequer_testkit::temp_dir().path().join("none");
    let text = format!(
        "[stream]\nreplicas = 1\nprefix = \"p\"\nmonitor_urls = [\"http://nats:8222\"]\ncredentials_file = {credentials:?}\n"
    );
    let (options, faults) = read(&text, &[]);
    let without_url = |fault: &&Fault| fault.reason.contains("stream.url");
    let mut keys: Vec<_> = faults.iter().filter(without_url).map(|fault| &*fault.key).collect();
    keys.sort_unstable();
    assert!(options.is_none());
    assert_eq!(keys, ["stream.credentials_file", "stream.monitor_urls", "stream.prefix", "stream.replicas"]);
    // The URL may come from elsewhere than the rest; without anything the stream is the embedded one.
    let (options, faults) =
        read("[stream]\nreplicas = 3\nprefix = \"p\"\n", &[("stream.url", "nats://nats")]);
    assert!(options.is_some_and(|options| options.0.replicas == 3) && faults.is_empty(), "{faults:?}");
    let (options, faults) = read("", &[]);
    assert!(options.is_none() && faults.is_empty(), "{faults:?}");
}
