import type { ConsumerDefinition } from "../define/consumer.ts";
import type { Message } from "../define/message.ts";
import { SortieError } from "../errors.ts";
import { isPromise } from "../schema.ts";
import type { Clock } from "./clock.ts";
import type { Held } from "./held.ts";
import { read } from "./message.ts";

/** Reads a message ahead of its start, once, and keeps it for that. Throws what reading it throws. */
export async function messageOf(one: Held, consumer: ConsumerDefinition, clock: Clock): Promise<Message> {
  if (one.message) return one.message;
  const reading = read(one.delivery, consumer, 1);
  const what = `the schema of consumer "${consumer.name}"`;
  one.message = isPromise(reading) ? await clock.handling(what, reading) : reading;
  return one.message;
}

/**
 * What a consumer's `key` function answers for a message, as a token of a subject.
 * @throws SortieError `invalid-option` for what is no key, and what the function throws.
 */
export function keyOf(
  message: Message,
  consumer: ConsumerDefinition,
  option: "idempotency" | "rateLimit",
  key: (message: Message) => string,
): string {
  const named = key(message);
  const bytes = typeof named === "string" ? new TextEncoder().encode(named) : [];
  if (bytes.length < 1 || bytes.length > 500) {
    const got = typeof named === "string" ? `one of ${bytes.length}` : typeof named;
    throw new SortieError(
      "invalid-option",
      `Consumer "${consumer.name}": expected ${option}.key to answer a string of 1 to 500 bytes, got ${got} for message ${message.sequence}`,
    );
  }
  return btoa(String.fromCharCode(...bytes)).replace(/[+/=]/g, (char) => safe[char] ?? "");
}

const safe: Record<string, string> = { "+": "-", "/": "_" };
