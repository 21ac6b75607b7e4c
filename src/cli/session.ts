import { resolve } from "node:path";
import { createJiti } from "jiti";
import { SortieError, textOf } from "../errors.ts";
import { assertLoggedIn, type Connection, connect, disconnect, type ServerOptions } from "../nats/connection.ts";
import type { Definitions } from "../provision/apply.ts";
import { collect } from "./definitions.ts";

/** How long connecting may take to somebody who waits for it. */
export const connectMs = 10_000;

/** A server with the log-in of the environment; `command` is how its monitoring knows us. */
export function serverAt(url: string, command: string): ServerOptions {
  const { NATS_CREDS: creds, NATS_NKEY: nkey, NATS_TOKEN: token } = process.env;
  return { url, creds, nkey, token, name: `sortie ${command}` };
}

/** Reads a module's definitions. Throws `invalid-option` where it exports none. */
export async function definitionsIn(file: string): Promise<Definitions> {
  const exported = await createJiti(import.meta.url, { fsCache: false }).import<Record<string, unknown>>(resolve(file));
  return collect(file, exported);
}

/**
 * Reads a module's definitions and connects to the server for what `carryOut` does with both.
 * @throws SortieError, with a sentence for whoever sits at the terminal.
 */
export async function session(
  command: string,
  file: string,
  { server }: { server?: string },
  carryOut: (connection: Connection, definitions: Definitions) => Promise<void>,
): Promise<void> {
  if (!server) throw new SortieError("invalid-option", "Which server? Set NATS_URL or pass --server wss://…");
  const definitions = await definitionsIn(file);
  const connection = await connect(serverAt(server, command), connectMs);
  try {
    await carryOut(connection, definitions);
  } catch (error) {
    await assertLoggedIn(connection);
    if (error instanceof SortieError) throw error;
    throw new SortieError("connection-lost", `Stopped by the server or the network: ${textOf(error)}`, {
      cause: error,
    });
  } finally {
    disconnect(connection);
  }
}
