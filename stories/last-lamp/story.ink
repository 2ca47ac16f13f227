// The Last Lamp on Harrow Quay
// Playable without any model. Choices that need luck carry their difficulty (dc) and the stat that
// helps: the story throws one die of twenty sides and adds the stat.

# title: The Last Lamp on Harrow Quay
# author: Fireside
# description: A fog, a ferry, three lamps to light before midnight, and something out on the water that has waited thirty years for one of them to stay dark.
# public: place, lit, oil, fog, nerve, wits, hands
# stats: nerve, wits, hands
# judged: nerve
# range: nerve 0..6 by 1
# shrug: The fog takes what you do and gives nothing back.

EXTERNAL roll(sides)

VAR place = "The wickhouse"
VAR lit = 0
VAR oil = 3
VAR fog = 0
VAR nerve = 2
VAR wits = 2
VAR hands = 2
VAR rolled = 0
VAR flame = true
VAR watered = false
VAR ines_trusts = false
VAR has_letter = false
VAR knows_names = false
VAR gave_word = false
VAR osk_found = false
LIST load = pole, oilskin, book

-> wickhouse

INCLUDE town.ink
INCLUDE water.ink
INCLUDE endings.ink

=== wickhouse
The lamps of Harrow Quay are lit from one fire. The fire lives in an iron basket in the wickhouse, and for as long as you have been apprenticed it has been Osk who carries it out at dusk, grumbling, with you behind him holding the ladder.
Tonight the basket is burning, the pole is on its hook, and Osk is not here.
You have waited an hour. In that time the window has gone from grey to a thick wool nothing. Fog, coming up off the water with the tide underneath it. On the wall, in chalk, in Osk's square hand, is the only appointment that matters: PERPETUA, MIDNIGHT, SIXTY SOULS AND THE MAIL.
The ferry steers by three lamps. The Market, the Stair, the Quay Light: put all three in a line and the channel is as safe as a street. With two, a pilot may guess. With fewer there are the Teeth, and the Teeth do not guess.
- (waiting)
* [Give Osk until the kettle boils]
    You give him until the kettle boils. It boils. You take it off the hob and stand there, holding it, listening for boots on the step, and what you hear instead is how quiet the harbour has become. No gulls. No rigging. As though somebody had put a hand over its mouth.
    ~ delay(1)
    -> waiting
* [Look in his room]
    -> osk_room
* [Take the fire out yourself]
    Nobody has said that you may. Nobody is here to say that you may not.
    -> loading

=== osk_room
~ place = "Osk's room"
You have never been in Osk's room. It is up a ladder and it is smaller than your own, which shames you a little, because you have complained about yours.
A bed made like a parcel. A basin. Boots gone, coat gone, but the good lantern still on its nail, so wherever he went he went without a light. Osk, who taught you on your first day that a lamplighter in the dark is a joke that everybody else gets to tell.
On the blanket there is a letter, and it is not sealed.
* [Read it]
    ~ has_letter = true
    It is short, and it has been begun several times.
    "To whoever has the pole after me. You'll have been told that the Marchpane was lost to weather. She was lost to me. I was nineteen and I had the Quay Light, and I sat down for one minute with my back against the warm of it, and when I woke it was out and had been out for hours. Eleven men. I knew them all. I said the wind took it, and everyone was so kind."
    Then a gap, and then, in newer ink: "They have started to ask me to leave it dark. It's only the one night they want. I am going down to tell them no. I ought to have gone before."
    You read the last line until it stops being handwriting and becomes merely true.
* [Leave it. It is not yours]
    You square it against the edge of the blanket, so that he will know it was seen and not touched. It feels like manners. All the way down the ladder it feels like something else.
- -> loading

=== loading
~ place = "The wickhouse"
You fill the carrying lantern, three measures, one for each lamp and none for luck. You hold the wick to the basket and the flame steps across as if it had only been waiting to be asked.
Three things hang by the door. You have two hands, and one of them is for the lantern.
* [Take the long pole] The pole is ash, and taller than the door, and worn in two places to the shape of Osk's grip. Your hands do not fit the hollows. You move them until they do.
    ~ load = pole
    ~ hands = hands + 2
* [Take Osk's oilskin] The oilskin comes down to your ankles. It smells of tallow and of every winter since before you were born, and inside it you are, to anyone who sees you through fog, the lamplighter.
    ~ load = oilskin
    ~ nerve = nerve + 2
* [Take the tide book] The tide book is forty years of Osk: hours and heights, and in the margins everything he never said aloud. "Calloway short again." "Ines has her mother's temper, thank God." "They were singing tonight." You put it inside your shirt.
    ~ load = book
    ~ wits = wits + 2
- You pull the door to behind you, and Harrow Quay is gone.
-> crossroads

=== crossroads
~ place = "Pump Corner"
{|You come back by feel to Pump Corner, counting doorways.}
{!What is left is a circle of cobbles as wide as your light, and the pump, and two sounds. Downhill and left there is a voice, complaining; that is the Market, and it will be Calloway, because it is always Calloway. Uphill and right the wind is turning something iron over and over. That is the Stair.}
{lit == 1: {!One lamp is burning behind you. It is not much, but the fog on that side has gone from black to brown, and you find that you stand a little straighter with your back to it.}}
{lit == 2: {!Two lamps. You can see, or nearly see, the line between them, and where the line points: down Rope Lane, to the Quay.}}
* {not market} [Go down to the Market]
    -> market
* {not stair_foot} [Go up to the Bell Stair]
    -> stair_foot
* {market || stair_foot} [Stop at the seamen's chapel]
    -> chapel
* {lit == 2} [Take Rope Lane to the Quay]
    -> rope_lane
* {lit < 2 && (market || stair_foot)} [Leave the rest and run for the Quay]
    One lamp, and the best of the night already gone. But the Quay Light is the one that the Teeth sit under. You have heard Osk say that a lamplighter who cannot do everything should do the last thing first.
    -> rope_lane

// One die of twenty sides and a stat against a difficulty.
=== function test(stat, difficulty)
~ rolled = roll(20) + stat
~ return rolled >= difficulty

// As hard as it is to climb the Quay Light; a lantern without oil costs time at the top.
=== function climb()
{ oil < 1:
    ~ return 11 + fog
}
~ return 10 + fog

=== function delay(much)
~ fog = fog + much

=== function spend_oil()
{ oil > 0:
    ~ oil = oil - 1
}

// The server's dice are used where there are any; these are for playing without it.
=== function roll(sides)
~ return RANDOM(1, sides)
