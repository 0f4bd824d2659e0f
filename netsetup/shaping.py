"""Limit how fast a pod receives and sends: a token bucket on either end of its link.

Owns the encoding of one queueing discipline. What a pod receives is limited on the host's end, what it sends on its
own. A bucket belongs to its link and goes with it.

Called by the CNI daemon for pods with the annotations `kubernetes.io/ingress-bandwidth` and `…/egress-bandwidth`.
"""

from __future__ import annotations

import struct

from netsetup.rtnetlink import NLM_F_CREATE, NLM_F_REPLACE, Message, attribute, nested

RTM_NEWQDISC = 36
TC_H_ROOT = 0xFFFFFFFF
TCA_KIND, TCA_OPTIONS, TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 2, 1, 4, 6
ETHERNET = 1
LATENCY = 0.025  # seconds a packet may wait before it is dropped, as in the bandwidth plugin of CNI
LEAST_BURST = 16_384  # bytes: a bucket must hold the largest packet that a card hands over at once
BURST_SECONDS = 0.1  # of the rate at once where nobody says how much: the annotations do not
UNSAID = 0x7FFFFFFF  # bits and more: the largest number, by which runtimes say so; as a bucket it would be no limit


def bucket(index: int, rate: int, burst: int) -> Message:
    """`rate` in bits per second, `burst` in bits (from UNSAID: as fits the rate); for the link of this index."""
    speed = max(1, rate // 8)
    size = min(max(burst // 8 if burst < UNSAID else int(speed * BURST_SECONDS), LEAST_BURST), 0x7FFFFFFF)
    limit = min(int(speed * LATENCY) + size, 0x7FFFFFFF)
    spec = struct.pack("=BBHhHI", 0, ETHERNET, 0, 0, 0, min(speed, 0xFFFFFFFF))
    parameters = spec + bytes(12) + struct.pack("=III", limit, 0, 0)
    options = [attribute(TCA_TBF_PARMS, parameters), attribute(TCA_TBF_BURST, size)]
    if speed > 0xFFFFFFFF:
        options.append(attribute(TCA_TBF_RATE64, struct.pack("=Q", speed)))
    body = struct.pack("=BxxxiIII", 0, index, 0x10000, TC_H_ROOT, 0)
    return Message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE,
                   body + attribute(TCA_KIND, "tbf") + nested(TCA_OPTIONS, *options))
