// Sentences to try, and one to read aloud as a voice, for the languages of the corpora.

const SENTENCES = {
  it: [
    "Buongiorno, come stai?",
    "Domani mattina il treno per Firenze parte alle otto e un quarto.",
    "Che bella sorpresa, non me l'aspettavo davvero!",
    "Il mare, visto dalla collina, sembrava una lastra d'argento.",
  ],
  de: [
    "Guten Tag, wie geht es dir?",
    "Morgen früh fährt der Zug nach Leipzig um Viertel nach acht.",
    "Was für eine schöne Überraschung!",
    "Vom Hügel aus sah das Meer aus wie eine Fläche aus Silber.",
  ],
  en: [
    "Good morning, how are you?",
    "The train to Bristol leaves tomorrow morning at a quarter past eight.",
    "What a lovely surprise, I did not expect that at all!",
    "Seen from the hill, the sea looked like a sheet of silver.",
  ],
  fr: [
    "Bonjour, comment vas-tu ?",
    "Demain matin, le train pour Lyon part à huit heures et quart.",
    "Quelle belle surprise, je ne m'y attendais pas du tout !",
    "Vue de la colline, la mer ressemblait à une plaque d'argent.",
  ],
  es: [
    "Buenos días, ¿cómo estás?",
    "Mañana por la mañana el tren a Sevilla sale a las ocho y cuarto.",
    "¡Qué bonita sorpresa, no me lo esperaba!",
    "Desde la colina, el mar parecía una lámina de plata.",
  ],
  pt: [
    "Bom dia, como estás?",
    "Amanhã de manhã o comboio para o Porto parte às oito e um quarto.",
    "Que bela surpresa, não estava nada à espera!",
    "Visto da colina, o mar parecia uma folha de prata.",
  ],
  nl: [
    "Goedemorgen, hoe gaat het met je?",
    "Morgenochtend vertrekt de trein naar Utrecht om kwart over acht.",
    "Wat een mooie verrassing, dat had ik niet verwacht!",
    "Vanaf de heuvel leek de zee wel een plaat van zilver.",
  ],
  pl: [
    "Dzień dobry, jak się masz?",
    "Jutro rano pociąg do Krakowa odjeżdża kwadrans po ósmej.",
    "Co za piękna niespodzianka, zupełnie się tego nie spodziewałem!",
    "Widziane ze wzgórza morze wyglądało jak tafla srebra.",
  ],
};

export const sentences = (language) => SENTENCES[language] ?? [];

/** Some 5 seconds to read aloud. */
export const reading = (language) => (SENTENCES[language] ?? []).slice(1, 4);
