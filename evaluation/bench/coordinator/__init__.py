"""``cipherward bench coordinator``: a real coordinator process under the load of many sites, over mutual TLS.

Sites are made up, but not what they send: real keys and certificates, signed records, and ciphertexts made by the
suites' own code. Up to eight client processes hold many sites each; every site has a connection and a watch stream
of its own, and waits for the coordinator's word before each step, as an agent does. Sums are compared with the
right ones.

Clients and coordinator share this machine's processors: figures hold for both together. What a site would
verify for itself, a client process verifies once for all of its sites; each of them fetches it nevertheless.
"""
