//! The network of a client.

use std::net::IpAddr;

/// Returns what one client has at least: an IPv4 address as it is, also one that a listener for both versions wrote as IPv6, and of
/// an IPv6 address the first 64 bits (RFC 4291 section 2.5.4). For counts and limits of your own by client;
/// [`peer_address`](crate::auth::ApiKeyLayerBuilder::peer_address) uses it.
///
/// ```
/// use tower_orgkey::auth::network_of;
///
/// let network = network_of("2001:db8:1:2:3:4:5:6".parse()?);
/// assert_eq!(network.to_string(), "2001:db8:1:2::");
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_apart_by_network() {
        let network = |address: &str| network_of(address.parse().unwrap());
        assert_eq!(
            network("2001:db8:1:2:3::1"),
            network("2001:db8:1:2:ffff::2")
        );
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("::ffff:192.0.2.1"), network("::ffff:192.0.2.2"));
    }
}
