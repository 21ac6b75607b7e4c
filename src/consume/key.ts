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
 * What a consumer's `key` function answers for a message, as a token of a subject: different keys have different ones.
 * @throws SortieError `invalid-option` for what is no key, and what the function throws.
 */
export async function keyOf(
  message: Message,
  consumer: ConsumerDefinition,
  option: "idempotency" | "rateLimit",
  key: (message: Message) => string,
): Promise<string> {
  const named = key(message);
  if (typeof named !== "string" || named === "") {
    const got = typeof named === "string" ? "an empty one" : typeof named;
    throw new SortieError(
      "invalid-option",
      `Consumer "${consumer.name}": expected ${option}.key to answer a string that is not empty, got ${got} for message ${message.sequence}`,
    );
  }
  const bytes = new TextEncoder().encode(named);
  return named.isWellFormed() && bytes.length <= longestBytes ? tokenOf(bytes) : `~${tokenOf(await digestOf(named))}`;
}

/** What is longer would make a subject that is too long; a digest stands for it, as for a text that UTF-8 cannot tell from others. */
const longestBytes = 500;

async function digestOf(text: string): Promise<Uint8Array> {
  const units = Uint16Array.from(text, (_, n) => text.charCodeAt(n));
  return new Uint8Array(await crypto.subtle.digest("SHA-256", units));
}

function tokenOf(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes)).replace(/[+/=]/g, (char) => safe[char] ?? "");
}

const safe: Record<string, string> = { "+": "-", "/": "_" };
