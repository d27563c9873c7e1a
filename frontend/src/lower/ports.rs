//! Hides the port language of `EXPOSE` (BuildKit `convert_expose.go`).

use std::net::IpAddr;

/// What a port specification means.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// `80/tcp`, in order.
    pub ports: Vec<String>,
    /// The protocol was not in lower case.
    pub odd_case: bool,
    /// An address or a port of the host was given.
    pub host_part: bool,
}

/// Reads `[ip:][host port:]port[-port][/protocol]`.
pub(super) fn parse(text: &str) -> Result<Ports, String> {
    let (front, container) = text.rsplit_once(':').map_or(("", text), |(front, port)| (front, port));
    let (ip, host) = front.rsplit_once(':').map_or(("", front), |(ip, host)| (ip, host));
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    if range.is_empty() {
        return Err(format!("no port specified: {container}<empty>"));
    }
    let lower = protocol.to_lowercase();
    let name = match lower.as_str() {
        "" => "tcp",
        "tcp" | "udp" | "sctp" => lower.as_str(),
        _ => return Err(format!("invalid proto: {lower}")),
    };
    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address: {bare}"));
    }
    let (start, end) = port_range(range).ok_or_else(|| format!("invalid containerPort: {range}"))?;
    if !host.is_empty() {
        let (host_start, host_end) = port_range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        if end - start != host_end - host_start && end != start {
            return Err(format!("invalid ranges specified for container and host Ports: {range} and {host}"));
        }
    }
    Ok(Ports {
        ports: (start..=end).map(|port| format!("{port}/{name}")).collect(),
        odd_case: protocol != lower,
        host_part: !front.is_empty(),
    })
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((start, end)) => number(start).zip(number(end)).filter(|(start, end)| start <= end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let rows = [
            ("80", Ok("80/tcp")),
            ("80/UDP", Ok("80/udp")),
            ("90-92/sctp", Ok("90/sctp 91/sctp 92/sctp")),
            ("8080:80", Ok("80/tcp")),
            ("127.0.0.1:8080:80/tcp", Ok("80/tcp")),
            ("127.0.0.1::80", Ok("80/tcp")),
            ("[::1]:8080:80", Ok("80/tcp")),
            ("8000-8002:80", Ok("80/tcp")),
            ("80/", Ok("80/tcp")),
            ("x", Err("invalid containerPort: x")),
            ("70000", Err("invalid containerPort: 70000")),
            ("9-8", Err("invalid containerPort: 9-8")),
            ("80/icmp", Err("invalid proto: icmp")),
            ("/tcp", Err("no port specified: /tcp<empty>")),
            ("a:80", Err("invalid hostPort: a")),
            ("1-2:3-5", Err("invalid ranges specified for container and host Ports: 3-5 and 1-2")),
            ("999.1.1.1:1:2", Err("invalid IP address: 999.1.1.1")),
        ];
        for (text, want) in rows {
            let got = parse(text).map(|p| p.ports.join(" "));
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }
}
