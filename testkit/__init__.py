"""What tests, proof and benchmarks share: virtual time, fakes, a proxy, certificates, servers."""
