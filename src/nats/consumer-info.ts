import type { Connection } from "./connection.ts";
import { within } from "./within.ts";

/** What the server says of a consumer, as far as it matters to who pulls from it. */
export interface ConsumerInfo {
  readonly error?: { readonly code: number };
  readonly num_pending?: number;
  readonly num_ack_pending?: number;
  readonly paused?: boolean;
  /** The server's time (nats-server 2.10), in RFC 3339. */
  readonly ts?: string;
  readonly config?: { readonly max_ack_pending?: number; readonly pause_until?: string };
}

/** Asks the server for it. Throws `timed-out` or what the client throws. */
export async function consumerInfo(
  connection: Connection,
  { stream, consumer }: { stream: string; consumer: string },
  ms: number,
): Promise<ConsumerInfo> {
  const asked = connection.request(`$JS.API.CONSUMER.INFO.${stream}.${consumer}`, "", { timeout: Math.max(1, ms) });
  return (await within(ms, "looking the consumer up", asked)).json();
}

/** Whether as much is outstanding as may be. */
export function isFull({ num_ack_pending = 0, config }: ConsumerInfo): boolean {
  const most = config?.max_ack_pending ?? -1;
  return most !== -1 && num_ack_pending >= most;
}
