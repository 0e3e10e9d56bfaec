//! Peers that mean no good: nothing that they send crashes the coordinator, and healthy clients go on being served.

use mezcal_tests::cluster::{Cluster, PATIENCE};
use mezcal_tests::wait_for;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Milliseconds that `coordinator hosts` takes, median of several, its own start included.
fn answer_time(cluster: &Cluster) -> f64 {
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let begin = Instant::now();
            let out = cluster.run(&["hosts", "-p", "mezcal"]);
            assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
            begin.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// A QUIC v1 long header (RFC 9000 §17.2) that begins a handshake and never goes on with it: the kind that half-open clients send.
fn initial(seed: u32, length: usize) -> Vec<u8> {
    let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
    packet.extend_from_slice(&u64::from(seed).to_be_bytes());
    packet.extend_from_slice(&[8, 9, 9, 9, 9, 9, 9, 9, 9, 0]);
    packet.extend_from_slice(&[0x44, 0xb0]);
    let mut random = seed | 1;
    packet.resize_with(length, || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 24) as u8
    });
    packet
}

#[test]
fn noise_and_half_open_clients_do_not_keep_others_waiting() {
    let cluster = Cluster::running(2, 2);
    let calm = answer_time(&cluster);
    let (enter, address) = (cluster.lab.entrance(0), cluster.address());
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let noise = std::thread::spawn(move || {
        enter();
        let sockets: Vec<UdpSocket> = (0..200)
            .map(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.connect(&address).expect("an address");
                socket
            })
            .collect();
        let mut sent = 0u32;
        while ended.recv_timeout(Duration::from_millis(20)).is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout) {
            for (n, socket) in sockets.iter().enumerate() {
                sent += 1;
                let packet = match n % 4 {
                    0 => initial(n as u32, 1200),
                    1 => initial(sent, 1200),
                    2 => initial(sent, 60 + n),
                    // Neither a header nor a version.
                    _ => initial(sent, 400)[7..].to_vec(),
                };
                // Full buffers lose some: all the same.
                let _ = socket.send(&packet);
            }
        }
        sent
    });
    let busy = answer_time(&cluster);
    let mut run = cluster.start_run(&"{\"cmd\": \"true\"}\n".repeat(200), &["-q"]);
    let status = wait_for("the run ends", PATIENCE, || run.try_wait().expect("our child"));
    end.send(()).expect("it listens");
    let sent = noise.join().expect("no panic");
    assert_eq!(status.code(), Some(0));
    eprintln!("hosts answers in {calm:.0} ms, and in {busy:.0} ms beside {sent} packets of noise");
    assert!(sent > 1000, "there was noise: {sent}");
    assert_eq!(cluster.connected().len(), 2, "the agents stayed");
    cluster.finish();
}
