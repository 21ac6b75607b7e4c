import type { Connection } from "./connection.ts";
import { isNoResponders, isTimeout } from "./jetstream.ts";
import { pause, within } from "./within.ts";

const pauseMs = 100;

interface Asking {
  /** For so long at most. */
  readonly ms: number;
  /**
   * Where asking twice does no harm: how long to wait for an answer before asking again, for what the old leader was asked
   * is lost with it.
   */
  readonly repeatMs?: number | undefined;
  /** Whether there is something that could get a leader, where nobody answers. @default there is */
  isThere?(leftMs: number): Promise<boolean | undefined>;
}

/**
 * Asks, and asks again while nobody listens, as while a stream or consumer has no leader.
 * @throws what the last `ask` threw.
 */
export async function untilLed<T>(
  { ms, repeatMs = Infinity, isThere = async () => true }: Asking,
  ask: (ms: number) => Promise<T>,
): Promise<T> {
  const until = Date.now() + ms;
  const leftMs = () => until - Date.now();
  for (let known = false; ; ) {
    try {
      return await ask(Math.min(repeatMs, leftMs()));
    } catch (error) {
      if (leftMs() <= pauseMs) throw error;
      if (isTimeout(error)) continue; // of which there is one before the end only where it is to be repeated
      if (!isNoResponders(error)) throw error;
      known ||= (await isThere(leftMs())) === true;
      if (!known) throw error;
    }
    await pause(Math.min(pauseMs, leftMs()), "waiting for a leader");
  }
}

/** Whether a stream captures a subject, be it led or not; undefined where nobody says. */
export async function isCaptured(connection: Connection, subject: string, ms: number): Promise<boolean | undefined> {
  try {
    const payload = JSON.stringify({ subject });
    const asked = connection.request("$JS.API.STREAM.NAMES", payload, { timeout: Math.max(1, ms) });
    const answer = await within(ms, "looking for a stream", asked);
    const { error, streams } = answer.json<{ error?: object; streams?: string[] | null }>();
    return error ? undefined : (streams ?? []).length > 0;
  } catch {
    return undefined;
  }
}
