import { headers, type MsgHdrs } from "@nats-io/nats-core";
import { SortieError } from "../errors.ts";
import { type Connection, maxPayloadOf } from "../nats/connection.ts";
import { isDenied, permissionsHint } from "../nats/denied.ts";
import { isNoResponders, isTimeout, publisherOn } from "../nats/jetstream.ts";
import { isCaptured, untilLed } from "../nats/leader.ts";
import { within } from "../nats/within.ts";
import { type Headers, headersSize, type Outgoing } from "./outgoing.ts";

/** Where the server stored a message; `duplicate` where one with its id was there already. */
export interface Published {
  stream: string;
  sequence: number;
  duplicate: boolean;
}

/**
 * Publishes and waits for the server's word that the message is stored.
 * @throws SortieError `stream-missing`, `stream-refused`, `permission-denied`, `payload-too-large`, `timed-out` or `connection-lost`. After the
 * last two the message may be stored all the same: publish again with the same id.
 */
export async function publish(connection: Connection, outgoing: Outgoing, ms: number): Promise<Published> {
  const { stream, subject, payload, id } = outgoing;
  assertFits(connection, outgoing);
  const publishOnce = (leftMs: number) => {
    const options = {
      ...(outgoing.headers && { headers: headersFor(outgoing.headers) }),
      timeout: Math.max(1, leftMs),
      ...(id && { msgID: id }),
      ...(stream && { expect: { streamName: stream } }),
    };
    const published = publisherOn(connection).publish(subject, payload, options);
    return within(leftMs, `publishing to "${subject}"`, published);
  };
  let captured: boolean | undefined; // where nobody has taken it
  try {
    const isThere = async (leftMs: number) => {
      captured = await isCaptured(connection, subject, leftMs);
      return captured;
    };
    const ack = await untilLed({ ms, repeatMs: id ? 2_000 : undefined, isThere }, publishOnce);
    return { stream: ack.stream, sequence: ack.seq, duplicate: ack.duplicate };
  } catch (error) {
    throw explain(error, stream, subject, captured);
  }
}

/** Throws `payload-too-large` for what the server would not take, or would as no dead letter. */
export function assertFits(connection: Connection, outgoing: Outgoing): void {
  const { stream, subject, payload } = outgoing;
  const limit = maxPayloadOf(connection) - (stream ? Math.min(storyBytes, maxPayloadOf(connection) / 4) : 0);
  const besides = headersSize(outgoing);
  if (payload.length + besides > limit) {
    throw new SortieError(
      "payload-too-large",
      `The message for "${subject}" has ${payload.length} bytes and ${besides} of headers; here it may have ${limit} in all (the server's max_payload${stream ? ", less room for the story of a dead letter" : ""})`,
    );
  }
}

/** What an app's message leaves free, so that its dead letter, which has its story beside it, fits as well. */
export const storyBytes = 4_096;

/** Whether another message was stored on its subject than the one it was to come after (`Nats-Expected-Last-Subject-Sequence`). */
export function isOutrun(error: unknown): boolean {
  return error instanceof SortieError && /wrong last sequence/i.test(error.message);
}

function headersFor(values: Headers): MsgHdrs {
  const hdrs = headers();
  for (const [name, value] of values) hdrs.append(name, value);
  return hdrs;
}

function explain(error: unknown, stream: string | undefined, subject: string, captured?: boolean): SortieError {
  const what = `Publishing to "${subject}"${stream ? ` of stream "${stream}"` : ""}`;
  if (error instanceof SortieError) return error;
  if (isNoResponders(error) && captured !== false) {
    const leader = captured ? "has no leader at the moment" : "may have no leader: nobody says whether there is one";
    return new SortieError("timed-out", `${what} reached nobody: its stream ${leader}`, { cause: error });
  }
  if (isNoResponders(error)) {
    return new SortieError(
      "stream-missing",
      `${what} reached no stream: none captures this subject. Create it from its definition: npx sortie apply <the module with your app>`,
      { cause: error },
    );
  }
  const reason = error instanceof Error ? error.message || error.name : String(error);
  if (/message size exceeds|max_payload/.test(reason)) {
    return new SortieError("payload-too-large", `${what} was refused: ${reason}`, { cause: error });
  }
  if (error instanceof Error && error.name === "JetStreamApiError")
    return new SortieError("stream-refused", `${what} was refused: ${reason}`, { cause: error });
  if (isDenied(error)) {
    return new SortieError("permission-denied", `${what} was refused: ${reason}. ${permissionsHint}`, { cause: error });
  }
  if (isTimeout(error)) {
    return new SortieError(
      "timed-out",
      `${what} was not confirmed in time; it may be stored all the same, so publish again with the same id`,
      { cause: error },
    );
  }
  return new SortieError(
    "connection-lost",
    `${what} was not confirmed (${reason}); it may be stored all the same, so publish again with the same id`,
    { cause: error },
  );
}
