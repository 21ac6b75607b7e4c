import type { StreamDefinition } from "../define/stream.ts";
import type { Connection } from "../nats/connection.ts";
import type { Clock } from "./clock.ts";
import type { Progress } from "./fan-out.ts";
import type { Gate } from "./gate.ts";
import type { Ledger } from "./ledger.ts";
import type { InvocationEvent } from "./report.ts";
import type { Rounds } from "./rounds.ts";

/** What all consumers of an invocation share. */
export interface Circumstances {
  readonly connection: Connection;
  readonly streams: readonly StreamDefinition[];
  readonly clock: Clock;
  readonly ledger: Ledger;
  readonly gate: Gate;
  readonly rounds: Rounds;
  readonly host: string;
  /** How long to wait for more when nothing is left to pull; Infinity for as long as there is time. */
  readonly lingerMs: number;
  /** The most messages that each of them pulls; Infinity for any number. */
  readonly messages: number;
  /** Told what is left of each consumer, for which the server is asked. */
  readonly left?: ((progress: Progress) => void) | undefined;
  log(event: InvocationEvent): void;
}
