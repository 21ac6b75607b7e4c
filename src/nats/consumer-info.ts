import { covers } from "../define/subject.ts";
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
  /** Up to where all of its messages are acknowledged. */
  readonly ack_floor?: { readonly stream_seq: number };
  readonly config?: {
    readonly max_ack_pending?: number;
    readonly pause_until?: string;
    readonly filter_subject?: string;
    readonly filter_subjects?: readonly string[];
  };
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

/** All consumers of a stream. Throws as `consumerInfo` does. */
export async function consumersOf(connection: Connection, stream: string, ms: number): Promise<ConsumerInfo[]> {
  const consumers: ConsumerInfo[] = [];
  for (;;) {
    const page = JSON.stringify({ offset: consumers.length });
    const asked = connection.request(`$JS.API.CONSUMER.LIST.${stream}`, page, { timeout: Math.max(1, ms) });
    const { consumers: some = [], total = 0 } = (await within(ms, "looking the consumers up", asked)).json<{
      consumers?: ConsumerInfo[] | null;
      total?: number;
    }>();
    consumers.push(...(some ?? []));
    if (!some?.length || consumers.length >= total) return consumers;
  }
}

/** Whether it still has to acknowledge a message of its stream, or may have to. */
export function isAwaiting(
  { num_pending = 0, num_ack_pending = 0, ack_floor, config }: ConsumerInfo,
  { subject, sequence }: { readonly subject: string; readonly sequence: number },
): boolean {
  const filters = config?.filter_subjects ?? [config?.filter_subject || ">"];
  return (
    num_pending + num_ack_pending > 0 &&
    (ack_floor?.stream_seq ?? 0) < sequence &&
    filters.some((filter) => covers(filter, subject))
  );
}

/** Whether as much is outstanding as may be. */
export function isFull({ num_ack_pending = 0, config }: ConsumerInfo): boolean {
  const most = config?.max_ack_pending ?? -1;
  return most !== -1 && num_ack_pending >= most;
}
