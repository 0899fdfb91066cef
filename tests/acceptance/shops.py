"""A user's accounts at both simulated channels, and what is in the books there."""

import requests

# What is made of an image at each channel.
PRODUCTS = {"printify": "mug", "shopify": "poster"}


def books(simulator, token):
    """What the simulated channels have of an account."""
    answer = requests.get(f"{simulator.url}/_sim/shops", params={"token": token}, timeout=10)
    answer.raise_for_status()
    return {account["channel"]: account for account in answer.json()["accounts"]}


def give_accounts(client, token):
    for channel, credentials, options in (
        ("printify", {"token": token}, {}),
        ("shopify", {"access_token": token}, {"shop": "foxes.myshopify.com"}),
    ):
        body = {"credentials": credentials, "options": options}
        client.call("PUT", f"channels/{channel}/", 201, json=body)


def approve(client, ids):
    client.call("POST", "images/actions/", json={"action": "approve", "ids": ids})
