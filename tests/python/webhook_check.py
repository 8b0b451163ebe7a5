#!/usr/bin/env python3
"""Verifies events with the library of the Standard Webhooks: reads a JSON list of {secret, headers, body} from standard
input and prints how many are right. Ends with 1 at the first that is not."""
import json
import sys

from standardwebhooks.webhooks import Webhook

events = json.load(sys.stdin)
for event in events:
    Webhook(event["secret"]).verify(event["body"], event["headers"])
print(len(events))
