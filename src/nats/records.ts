import { headers, type MsgHdrs } from "@nats-io/nats-core";
import { SortieError, textOf } from "../errors.ts";
import type { Connection } from "./connection.ts";
import { isCaptured, untilLed } from "./leader.ts";
import { within } from "./within.ts";

/** What a stream has stored for a subject. */
interface Stored<T> {
  readonly value: T;
  /** What it is replaced or removed by. */
  readonly revision: number;
  /** When it was stored by the server's clock, in epoch milliseconds. */
  readonly at: number;
}

/**
 * Small records that invocations share, one for each subject of a stream that keeps the last message of each. Every call is
 * one round trip, answered by the stream's leader: what it says has happened.
 * @throws SortieError `stream-missing`, `stream-refused`, `permission-denied`, `record-conflict`, `timed-out` or `connection-lost`.
 */
export interface Records<T> {
  read(subject: string, ms: number): Promise<Stored<T> | undefined>;
  /**
   * Replaces the record that has `revision`, 0 for none yet, and answers the new one's revision. Throws `record-conflict`
   * where another invocation has written meanwhile.
   */
  write(subject: string, revision: number, value: T, ms: number): Promise<number>;
  /** Removes the record that has `revision`; one that was replaced meanwhile stays. */
  remove(revision: number, ms: number): Promise<void>;
}

interface Answer {
  error?: { code: number; err_code?: number; description?: string };
  seq?: number;
  message?: { seq: number; time: string; data?: string };
}

/** `what` the records are: "the attempts at a message". */
export function recordsIn<T>(connection: Connection, stream: string, what: string): Records<T> {
  async function ask(doing: string, subject: string, payload: string, ms: number, hdrs?: MsgHdrs): Promise<Answer> {
    const name = `${doing} ${what}`;
    const askOnce = (leftMs: number) => {
      const options = { timeout: Math.max(1, leftMs), ...(hdrs && { headers: hdrs }) };
      return within(leftMs, name, connection.request(subject, payload, options));
    };
    let captured: boolean | undefined;
    try {
      const isThere = async (leftMs: number) => {
        captured = await isCaptured(connection, subject, leftMs);
        return captured;
      };
      // what is written twice conflicts with itself; what is asked of the API has a stream, or the API says that it has not
      const again = hdrs ? { isThere } : { repeatMs: 1_000 };
      return (await untilLed({ ms, ...again }, askOnce)).json<Answer>();
    } catch (error) {
      if (error instanceof SortieError) throw error;
      if (captured === false) throw missing(); // what no stream takes is answered by nobody
      throw new SortieError("connection-lost", `${name}: ${textOf(error)}`, { cause: error });
    }
  }

  function missing(): SortieError {
    return new SortieError(
      "stream-missing",
      `Stream "${stream}", which keeps ${what}, does not exist on the server. Create it: npx sortie apply <the module with your app>`,
    );
  }

  function refused(description = "no reason given"): SortieError {
    return new SortieError("stream-refused", `Stream "${stream}" refused to keep ${what}: ${description}`);
  }

  return {
    async read(subject, ms) {
      const payload = JSON.stringify({ last_by_subj: subject });
      const { error, message } = await ask("reading", `$JS.API.STREAM.MSG.GET.${stream}`, payload, ms);
      if (message) {
        const { seq: revision, time, data = "" } = message;
        return { value: JSON.parse(atob(data)) as T, revision, at: Date.parse(time) };
      }
      if (error?.err_code === 10037) return undefined;
      throw error?.err_code === 10059 ? missing() : refused(error?.description);
    },
    async write(subject, revision, value, ms) {
      const hdrs = headers();
      hdrs.set("Nats-Expected-Last-Subject-Sequence", `${revision}`);
      hdrs.set("Nats-Expected-Stream", stream);
      const { error, seq } = await ask("writing", subject, JSON.stringify(value, ascii), ms, hdrs);
      if (seq) return seq;
      if (error?.err_code !== 10071) throw refused(error?.description);
      throw new SortieError("record-conflict", `Another invocation has written ${what} meanwhile`);
    },
    async remove(revision, ms) {
      const payload = JSON.stringify({ seq: revision, no_erase: true });
      await ask("removing", `$JS.API.STREAM.MSG.DELETE.${stream}`, payload, ms);
    },
  };
}

/** What `atob` reads back without more ado, in little space. */
function ascii(_key: string, value: unknown): unknown {
  return typeof value === "string" ? value.replace(/[^\x20-\x7e]/g, "?").slice(0, 300) : value;
}

export function isConflict(error: unknown): boolean {
  return error instanceof SortieError && error.code === "record-conflict";
}
