"""Connections to brokers: all that touches paho."""
