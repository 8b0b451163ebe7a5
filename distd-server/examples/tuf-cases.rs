//! Writes TUF repositories, some of which clients must accept and the others refuse: `cargo run
//! --example tuf-cases -- DIR`. `tests/python/tuf_check.py --cases DIR` checks them with
//! python-tuf.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used)]

#[path = "../tests/tuf_cases/mod.rs"]
mod tuf_cases;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("usage: tuf-cases DIR");
        std::process::exit(2);
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let dir = std::path::PathBuf::from(dir);
    std::fs::create_dir_all(&dir).expect("the directory can be made");
    let cases = tuf_cases::make(&dir, now.as_secs()).await;
    println!("{} cases in {}", cases.len(), dir.display());
}
