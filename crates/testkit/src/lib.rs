//! Dev-only: real parts for tests (nats-server processes, ports, keys, sample events).
