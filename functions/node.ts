import { serve } from "sortie/node";
import { app } from "./app.ts";

await serve(app);
