# Short names for the commands of CONTRIBUTING.md; `just` lists them.

_:
    @just --list

# Formatting, lints, tree checks, unit and property tests
quick:
    tests/run.sh --quick

# Everything that has to pass before a change lands
test:
    tests/run.sh

# Formats all code
fmt:
    cargo fmt --all

# Lints
check:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# The reference of all crates
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Simulated swarms with RUNS seeds for each scenario
sim RUNS="25":
    DISTD_TEST_SIM_RUNS={{RUNS}} cargo nextest run -p distd-tests -E 'binary(sim)'

# Bytes, seconds and memory of an update, beside rivals
bench:
    tests/bench/compare.sh

# Debian packages of origin, relay and device
packages:
    deploy/packages.sh

# Two releases, an origin, a relay and three devices on loopback
demo:
    deploy/demo.sh
