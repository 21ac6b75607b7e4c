import { describe } from "vitest";
import { type ClientName, clients } from "../support/clients.ts";
import { programOf, type ServerVersion } from "../support/servers.ts";
import { startSystem } from "../support/system.ts";
import { agreeing } from "./agreeing.ts";
import { answering } from "./answering.ts";
import { batching } from "./batching.ts";
import { continuing } from "./continuing.ts";
import type { Start } from "./jobs.ts";
import { parking } from "./parking.ts";
import { provisioning } from "./provisioning.ts";
import { pulling } from "./pulling.ts";
import { settling } from "./settling.ts";
import { sweeping } from "./sweeping.ts";

const all = process.env.CHAOS === "full";

/**
 * What Sortie promises on one version of the server, over whichever of the clients that have what it asks for: over each
 * of them on the newest, and over the one that it brings itself on those before.
 */
export function contract(version: ServerVersion): void {
  const names = Object.keys(clients) as ClientName[];
  const here = names.filter((client) => all || version === "newest" || client === "wsconnect");
  describe.each(here)(`on nats-server ${version}, over %s:`, { concurrent: here.length > 1 }, (client) => {
    const start: Start = (app) => startSystem(app, { binary: programOf(version), client });
    settling(start);
    batching(start);
    parking(start);
    if (client === "wsconnect") agreeing(start); // by requests that the other parts make over each client
    sweeping(start);
    pulling(start);
    answering(start);
    continuing(start);
    provisioning(start, version, client);
  });
}
