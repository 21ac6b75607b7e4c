import type { Delivery } from "../nats/delivery.ts";
import type { Entry } from "./ledger.ts";
import type { Source } from "./source.ts";

/** A delivery in hand. */
export interface Held {
  readonly key: string;
  readonly bytes: number;
  readonly source: Source["kind"];
  /** What it stands for. */
  delivery: Delivery;
  /** Where its settlement goes: to the latest delivery of it. */
  ackSubject: string;
  /** When the server last heard that it is being worked on, in epoch milliseconds. */
  heardAt: number;
  /** Whether the server may have handed it to someone else meanwhile. */
  lost: boolean;
  /** What the ledger has on it, where it was asked. */
  entry?: Entry;
}
