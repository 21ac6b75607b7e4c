import type { ConsumerDefinition } from "../define/consumer.ts";
import type { Message } from "../define/message.ts";
import { SortieError } from "../errors.ts";
import type { Delivery } from "../nats/delivery.ts";
import { isPromise } from "../schema.ts";
import type { Clock } from "./clock.ts";
import { read } from "./message.ts";

/**
 * What a consumer's `key` function answers for a message, as a token of a subject.
 * @throws SortieError `invalid-option` for what is no key, what reading the message throws, and what the function throws.
 */
export async function keyFor(
  consumer: ConsumerDefinition,
  option: "idempotency" | "rateLimit",
  key: (message: Message) => string,
  delivery: Delivery,
  clock: Clock,
): Promise<string> {
  const reading = read(delivery, consumer, 1);
  const what = `the schema of consumer "${consumer.name}"`;
  const named = key(isPromise(reading) ? await clock.handling(what, reading) : reading);
  const bytes = typeof named === "string" ? new TextEncoder().encode(named) : [];
  if (bytes.length < 1 || bytes.length > 500) {
    const got = typeof named === "string" ? `one of ${bytes.length}` : typeof named;
    throw new SortieError(
      "invalid-option",
      `Consumer "${consumer.name}": expected ${option}.key to answer a string of 1 to 500 bytes, got ${got} for message ${delivery.sequence}`,
    );
  }
  return btoa(String.fromCharCode(...bytes)).replace(/[+/=]/g, (char) => safe[char] ?? "");
}

const safe: Record<string, string> = { "+": "-", "/": "_" };
