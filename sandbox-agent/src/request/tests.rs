//! What a profile gives every execution arrives where the sandbox reads it.

use super::*;

fn limits_under(section: &str) -> Limits {
    let text = format!("name = \"p\"\n[limits]\n{section}");
    let profile = Definition::parse("p.toml", &text).unwrap_or_else(|faults| panic!("{faults}"));
    let asked = v1::Limits { cpu_ms: 1, wall_ms: 2, memory_bytes: 3, output_bytes: 4, egress_bytes: 5 };
    spec(&profile, "/bin/true".to_owned(), Vec::new(), Vec::new(), &asked).limits
}

#[test]
fn what_a_profile_gives_every_execution_is_in_its_limits() {
    let without = limits_under("processes = 7\nopen_files = 17\nfile_size = \"9B\"\n");
    let expected = Limits {
        cpu_ms: 1,
        wall_ms: 2,
        memory_bytes: 3,
        output_bytes: 4,
        egress_bytes: 5,
        pids: 7,
        open_files: 17,
        file_bytes: 9,
        cpus_milli: 0,
        io_bytes_per_s: 0,
    };
    assert_eq!(without, expected);
    let rates = limits_under(
        "processes = 7\nopen_files = 17\nfile_size = \"9B\"\ncpus = 1.5\nio_per_second = \"32MiB\"\n",
    );
    assert_eq!(rates, Limits { cpus_milli: 1500, io_bytes_per_s: 32 << 20, ..expected });
}
