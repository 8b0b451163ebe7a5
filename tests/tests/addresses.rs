//! Dead addresses, missing address families, and parents that start later than the node.

use std::fs;
use std::net::{Ipv6Addr, ToSocketAddrs, UdpSocket};
use std::process::{Command, Stdio};

use distd_tests::lab::{Daemon, Lab, Outcome, binary, wait_until};

/// Runs its arguments where `socket(AF_INET6, ...)` fails with EAFNOSUPPORT, as on a kernel without
/// IPv6.
const WITHOUT_IPV6: &str = "\
import ctypes, os, struct, sys
op = lambda code, t, f, k: struct.pack('HBBI', code, t, f, k)
program = b''.join([op(0x20,0,0,0), op(0x15,0,3,41), op(0x20,0,0,16), op(0x15,0,1,10), op(6,0,0,0x50000|97), op(6,0,0,0x7fff0000)])
buffer = ctypes.create_string_buffer(program)
class Filter(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('p', ctypes.c_void_p)]
c = ctypes.CDLL(None); c.prctl(38, 1, 0, 0, 0)
assert c.prctl(22, 2, ctypes.byref(Filter(6, ctypes.addressof(buffer))), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
";

fn without_ipv6(command: &Command) -> Command {
    let mut python = Command::new("python3");
    python.args(["-c", WITHOUT_IPV6]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        python.env(name, value.expect("set"));
    }
    python.stdin(Stdio::null());
    python
}

#[test]
fn every_program_works_on_a_machine_without_ipv6() {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("skipped: the filter that takes IPv6 away is written for x86_64");
        return;
    }
    let lab = Lab::start();
    let artifact = lab.path("a");
    fs::write(&artifact, b"an artifact of a few bytes").expect("write");
    lab.push(&artifact, "os", "1").ok();
    let mut relay = Command::new(binary("distd-peer"));
    relay.args(["run", "--parent", lab.quic(), "--data"]).arg(lab.path("relay"));
    relay.env("DISTD_JOIN_TOKEN", lab.join_token("relay", 1));
    // The relay must listen on its default port here, which another program on the machine may have
    // taken; with a given port this would be no test of the default.
    let log = lab.path("relay.log");
    let taken = std::net::TcpListener::bind(("0.0.0.0", 4433)).is_err();
    if taken {
        eprintln!("skipped: port 4433 is in use");
        return;
    }
    let relay = Daemon::start(without_ipv6(&relay), &log, "relay listening on ");
    assert_eq!(relay.addresses, ["0.0.0.0:4433"]);
    lab.enroll("d", "127.0.0.1:4433");
    let pull = lab.pull_command("d", "os@1", &lab.path("out"), &[]);
    Outcome::of(without_ipv6(&pull).output().expect("run it")).ok();
}

#[test]
fn an_address_that_never_answers_does_not_block_the_next_one() {
    let lab = Lab::start();
    let port = lab.quic().rsplit(':').next().expect("a port").to_owned();
    let name = format!("localhost:{port}");
    let found: Vec<_> = name.to_socket_addrs().expect("resolves").collect();
    let number: u16 = port.parse().expect("a number");
    let dead = UdpSocket::bind((Ipv6Addr::LOCALHOST, number));
    let dead_tcp = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, number));
    if !found.iter().any(std::net::SocketAddr::is_ipv6) || dead.is_err() || dead_tcp.is_err() {
        eprintln!("skipped: localhost has no IPv6 address here");
        return;
    }
    for transport in ["auto", "quic"] {
        let device = format!("d-{transport}");
        let token = lab.join_token("leaf", 1);
        let args = ["enroll", "--parent", &name, "--token", &token, "--transport", transport];
        lab.device(&device, &args).ok();
    }
}

#[test]
fn a_relay_that_boots_before_its_network_waits_for_it() {
    let mut lab = Lab::start();
    let token = lab.join_token("relay", 1);
    lab.stop_origin();
    let mut command = Command::new(binary("distd-peer"));
    command.args([
        "run",
        "--parent",
        lab.quic(),
        "--listen",
        "127.0.0.1:0",
        "--transport",
        "https",
        "--data",
    ]);
    command.arg(lab.path("relay")).env("DISTD_JOIN_TOKEN", token).stdin(Stdio::null());
    let log = lab.path("relay.log");
    let errors = fs::File::create(&log).expect("create");
    let out = fs::File::create(lab.path("relay.out")).expect("create");
    let mut relay = command.stdout(out).stderr(errors).spawn().expect("start it");
    wait_until("it says that it waits", || {
        fs::read_to_string(&log).unwrap_or_default().contains("not enrolled yet")
    });
    assert!(relay.try_wait().expect("look").is_none(), "it ended");
    lab.start_origin();
    wait_until("it enrols", || {
        fs::read_to_string(lab.path("relay.out")).unwrap_or_default().contains("relay listening on")
    });
    relay.kill().expect("end it");
    relay.wait().expect("wait for it");
}
