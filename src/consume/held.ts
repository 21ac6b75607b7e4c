import type { Start } from "../dead-letter/story.ts";
import type { Message } from "../define/message.ts";
import type { Delivery } from "../nats/delivery.ts";
import type { Entrance } from "./gate.ts";
import { type Attempts, type Entry, noAttempts } from "./ledger.ts";
import type { Source } from "./source.ts";

/** A delivery in hand. */
export interface Held {
  readonly key: number | string;
  bytes: number;
  readonly source: Source["kind"];
  /** What it stands for. */
  delivery: Delivery;
  /** Where its settlement goes: to the latest delivery of it. */
  ackSubject: string;
  /** When the server last heard that it is being worked on, in epoch milliseconds. */
  heardAt: number;
  /** Whether the server may have handed it to someone else meanwhile. */
  lost: boolean;
  /** Whether the report counts it: not so for a parked copy that only waits. */
  counted: boolean;
  /** What it entered the gate with, which it leaves when it is settled; 0 while it is outside. */
  inside: Entrance | 0;
  /** Whether it is handled in a batch, which has one place for all of its messages. */
  inCompany?: boolean;
  settling: boolean;
  /** What came again while it was being settled, as after a retry without a delay. */
  next?: Delivery;
  /** What the ledger has on it, where it was asked. */
  entry?: Entry;
  /** Its latest start, as it was to be written down before. */
  announced?: Start & { readonly alone: boolean };
  /** That one and those before of which it is not written down how they ended. */
  opened?: readonly Start[];
  /** What was read of it ahead of its start. */
  message?: Message;
  /** The rate limit that it is under, where that is one by key: the subject of its record. */
  limit?: string;
  /** When its handler may be started under that limit, in epoch milliseconds. */
  slot?: number;
  /** Its key, claimed for it. */
  claim?: { readonly subject: string; readonly by: string; readonly revision: number };
  /** Of a parked copy, where the delivery that it was made of is acknowledged. */
  originAck?: string;
}

/** A message that is to be started, with others or without. */
export interface Member {
  readonly one: Held;
  /** What is known of its starts before. */
  readonly before: Attempts;
}

/** A message by itself, as it is known. */
export function memberOf(one: Held): Member {
  return { one, before: attemptsOf(one) };
}

export function attemptsOf({ entry }: Held): Attempts {
  return (entry ?? noAttempts).attempts;
}
